"""The blended stream: litdata sources in, batches of an exact, resumable, world-size-free sequence out.

Both classes are litdata's own by ``isinstance``; what they replace is litdata's choice of source and
sample, which cannot be switched, resumed or resharded exactly (docs/data.md). Sample g of the global
stream is a pure function of (seed, g, history of blends), see `lit_cpt.blends`; ranks and workers only
decide who reads which slice of it.
"""

from lit_cpt.stream.convert import blended
from lit_cpt.stream.dataset import STATE_VERSION, BlendedStreamingDataset
from lit_cpt.stream.loader import BlendedDataLoader, collate, detected_share, rewind_untrained
from lit_cpt.stream.patience import Stalled, patient
from lit_cpt.stream.reader import SourceReader, chunk_bounds
from lit_cpt.stream.sources import check_tokenizers, open_source
from lit_cpt.stream.staging import Remote, Staging

__all__ = ["STATE_VERSION", "BlendedDataLoader", "BlendedStreamingDataset", "Remote", "SourceReader", "Staging",
           "Stalled", "blended", "check_tokenizers", "chunk_bounds", "collate", "detected_share", "open_source",
           "patient", "rewind_untrained"]
