"""The module that a script's own processes import or run: they repeat what was replaced in the script."""

from immiscible_diffusion.scripts.start import load, start

if __name__ == "__main__":
    import sys

    start(sys.argv[1:])
elif __name__ == "__mp_main__":
    load(globals())
