"""What every test starts from."""

import signal

# A shell that starts pytest in the background makes it, and all that it starts, deaf
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
