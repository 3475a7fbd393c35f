"""What raised in a benchmark, while the rest of it goes on."""

import traceback


class Failures:
    """Keeps a line of each failure; :meth:`stop` then ends the program, with 1 if there is one."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, what: str, error: Exception) -> None:
        """Says which case, and which of its contenders, failed with what."""
        traceback.print_exception(error)
        first = (str(error).strip().splitlines() or ["no message"])[0]
        self.lines.append(f"FAILED {what}: {type(error).__name__}: {first}")
        print(self.lines[-1], flush=True)

    def stop(self) -> None:
        """Ends the program: with 1 if anything failed.

        Raises:
            SystemExit: always.
        """
        print(f"{len(self.lines)} failed", flush=True)
        raise SystemExit(bool(self.lines))
