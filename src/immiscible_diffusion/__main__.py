"""The command ``immiscible``."""

import sys


def main() -> None:
    """Run the command line, or say which extra it needs."""
    try:
        from immiscible_diffusion.cli import run

        sys.exit(run(sys.argv[1:]))
    except ImportError as error:
        sys.exit(f"immiscible: {error}. Install the command's packages: pip install 'immiscible-diffusion[all]'")
    except KeyboardInterrupt:  # while packages are loaded, which takes seconds
        sys.stderr.write("immiscible: interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
