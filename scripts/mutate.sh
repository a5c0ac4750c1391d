#!/usr/bin/env bash
# Mutation tests: change curvature/, optim/, losses.py and kernels/geometry.py in one place at a
# time, run the tests that reach it, and list the changes that no test notices.
#
#     scripts/mutate.sh [--go-on] [FOLDER [SHARE [PART]]]
#
# Works on a copy in FOLDER (default: a folder in the system's temporary one), with an environment
# of its own, in one process. A SHARE of 4 takes one mutant in four, drawn by a hash of its name;
# PART, from 0 to SHARE - 1, says which. The count goes to docs/testing.md, which says how to look
# at survivors.
#
# It starts from nothing each time. With --go-on results in FOLDER are kept: only mutants of changed
# functions, those that were not caught, and those of another PART are tried, with the tests as
# they are now.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
keep=
if [ "${1:-}" = --go-on ]; then
    keep=yes
    shift
fi
work=${1:-${TMPDIR:-/tmp}/kfc_numba-mutation}
sample=(--share "${2:-1}" --part "${3:-0}")
mkdir -p "$work"
work=$(cd "$work" && pwd)

if ! cmp -s "$top/scripts/mutate-requirements.txt" "$work/environment/requirements.txt"; then
    rm -rf "$work/environment"
    "${PYTHON:-python3}" -m venv "$work/environment"
    "$work/environment/bin/pip" install --quiet -r "$top/scripts/mutate-requirements.txt"
    cp "$top/scripts/mutate-requirements.txt" "$work/environment/requirements.txt"
fi

if [ -z "$keep" ]; then
    rm -rf "$work/tree"
fi
mkdir -p "$work/tree"
(cd "$top" && git ls-files -z | xargs -0 cp --parents -pt "$work/tree")
cp "$top/scripts/mutate.cfg" "$work/tree/setup.cfg"

# Mutants are forked from one process: Numba's own thread pool lets them launch kernels.
export NUMBA_THREADING_LAYER=workqueue NUMBA_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1
export NUMBA_CACHE_DIR="$work/kernels" PYTHONPATH="$top/scripts"
cd "$work/tree"
mutate=("$work/environment/bin/python" "$top/scripts/mutate.py")
"${mutate[@]}" run "${sample[@]}"
"${mutate[@]}" run "${sample[@]}" --missed
"${mutate[@]}" count "${sample[@]}" --page "$top/docs/testing.md"
