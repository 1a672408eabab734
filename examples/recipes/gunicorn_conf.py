"""Gunicorn's hooks: each worker is a node for as long as it runs."""


def post_worker_init(worker):
    from gunicorn_flask import control

    control.start()


def worker_exit(server, worker):
    from gunicorn_flask import control

    control.stop()
    control.join(10)
