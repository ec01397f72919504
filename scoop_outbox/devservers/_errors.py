"""What can go wrong with a server, whichever it is."""


class ServerNotFoundError(RuntimeError):
    """No server of this kind could be found here; the message says what to install."""


class ServerStartError(RuntimeError):
    """A server was found and did not start; the message holds the end of its log."""
