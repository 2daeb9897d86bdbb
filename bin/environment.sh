# Every command sources this file to find the project and its Python. It is not a command itself.
root=$(cd "$(dirname "$(readlink -f "$0")")/.." && pwd)
python="$root/.venv/bin/python"
if [ ! -x "$python" ]; then
  python=python3
  # Python before 3.11 has no -P.
  python3 -P -c '' 2> /dev/null || {
    echo "error: nothing is installed in $root/.venv, and python3 is not Python 3.11 to 3.13; run bin/setup" >&2
    exit 1
  }
fi
# An empty part of PYTHONPATH names the current folder, whose modules would replace installed ones.
PYTHONPATH=$(echo "$root:${PYTHONPATH:-}" | sed 's/:::*/:/g; s/:$//')
export PYTHONPATH
# Large pages, and memory kept between steps: training on a CPU is up to twice as fast (glibc; ignored elsewhere).
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"
export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-4294967296}" MALLOC_MMAP_MAX_="${MALLOC_MMAP_MAX_:-0}"
export TOKENIZERS_PARALLELISM="${TOKENIZERS_PARALLELISM:-true}"
