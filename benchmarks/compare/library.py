"""Library: the transformers that is installed, which is what ours is compared with."""

from typing import Any

from cadenza.core.errors import BenchmarkError


def import_transformers() -> Any:
    """Import transformers with warnings off; BenchmarkError if it has no MusicGen."""
    try:
        import transformers

        _ = transformers.MusicgenForConditionalGeneration
        transformers.logging.set_verbosity_error()
        transformers.logging.disable_progress_bar()
    except (ImportError, AttributeError) as error:
        raise BenchmarkError(
            f"the installed transformers has no MusicGen to compare with ({error}); "
            'install it with: pip install "transformers>=5", or use --no-peer'
        ) from None
    return transformers
