"""What diffusers' U-Nets need of their levels and of the data's sides."""

__all__ = ["check_attention", "check_sides", "sample_size"]


def check_attention(attention: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Raise ValueError if attention stands at a level that does not exist."""
    if not set(attention) <= set(range(len(channels))):
        raise ValueError(f"attention at {attention}; there are {len(channels)} levels, from 0")


def check_sides(shape: tuple[int, ...], channels: tuple[int, ...]) -> None:
    """Raise ValueError unless data of this shape, (c, h, w), can be halved between the levels."""
    halvings = 2 ** (len(channels) - 1)
    if len(shape) != 3 or shape[1] % halvings or shape[2] % halvings:
        raise ValueError(
            f"{len(channels)} levels need (c, h, w) with sides of multiples of {halvings}: {shape}; give "
            "net.channels fewer levels, or the data another size (source.size)"
        )


def sample_size(shape: tuple[int, ...]) -> int | tuple[int, ...]:
    """Return the sides of data of shape (c, h, w) as diffusers' configurations have them.

    >>> sample_size((3, 8, 8)), sample_size((3, 8, 16))
    (8, (8, 16))
    """
    return shape[1] if shape[1] == shape[2] else shape[1:]  # some pipelines take a number alone
