"""Marks for tests that need what a machine may lack."""

import pytest
import torch

from serving.engine.kernels import ops
from tests.support.skips import NEEDS_AVX512, NEEDS_CUDA

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason=NEEDS_CUDA)
needs_avx512 = pytest.mark.skipif(not ops.available(), reason=NEEDS_AVX512)
