#!/usr/bin/env bash
# The tests of the C++ kernels on an extension that is built with a sanitizer, in a copy of the tree.
# Usage: tests/sanitize.sh address|thread [pytest arguments]
set -euo pipefail
cd "$(dirname "$0")/.."
kind=$1
shift
root=$PWD
work=$root/build/sanitize-$kind
mkdir -p "$work"
rm -rf "$work/python" "$work/csrc" "$work/tests"
cp -r python csrc kernels benchmarks tests setup.py pyproject.toml README.md LICENSE "$work/"
rm -f "$work"/python/undivided/_C*.so
cd "$work"
"$root/.venv/bin/python" setup.py build_ext --inplace --sanitize="$kind" >build.log || { tail -n 40 build.log; exit 1; }
ls python/undivided/_C*.so >/dev/null || { tail -n 40 build.log; exit 1; }

case $kind in
  address) library=$(g++ -print-file-name=libasan.so) ;;
  thread) library=$(g++ -print-file-name=libtsan.so) ;;
esac
# The interpreter and torch leak by design, and their own threads are built without the sanitizer: our pool runs instead
# of torch's, so that every access and every hand-over between threads is seen.
export ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 TSAN_OPTIONS="ignore_noninstrumented_modules=1 exitcode=66"
export PYTHONPATH=$work/python PYTHONMALLOC=malloc
# The package is imported before the tests can ask for Triton's interpreter, and the sanitizer must find the C++ library's
# exceptions, which torch throws.
export TRITON_INTERPRET=1
LD_PRELOAD="$library $(g++ -print-file-name=libstdc++.so)" "$root/.venv/bin/python" - -q -p no:cacheprovider "$@" tests/test_cpu_*.py tests/test_attention_decode.py tests/test_direct*.py tests/test_rotary.py <<'PY'
import sys

import pytest

import undivided.cpu
from undivided import _C

_C.set_openmp(0)
assert _C.thread_pool() == "own"
sys.exit(pytest.main(sys.argv[1:]))
PY
