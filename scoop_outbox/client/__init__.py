"""How the world outside of sagas talks to them: declaring, launching, waiting."""
