"""The module that a script's own processes import or run, to replace the same draws in them."""

from immiscible_diffusion.scripts.start import load, start

if __name__ == "__main__":
    import sys

    start(sys.argv[1:])
elif __name__ == "__mp_main__":
    load(globals())
