"""The hot operations: C for the CPU (``cpu``) and the definition of truth (``reference``)."""
