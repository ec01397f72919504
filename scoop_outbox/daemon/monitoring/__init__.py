"""Monitoring: what a process answers when somebody asks how it is."""
