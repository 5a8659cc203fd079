#!/usr/bin/env bash
# The checks that need a GPU, in about six minutes of an H200: ratios of the benchmarks, then the main job on the
# embedded model. From the repository's root, with seawall importable; writes to the folder given (default runs/gpu).
#
#   scripts/gpu_check.sh [FOLDER]
set -euo pipefail
out=${1:-runs/gpu}
mkdir -p "$out"
shape=(--device cuda --dtype bfloat16 --layers 5 --width 1024 --expert-width 512 --experts 64 --top-k 8 --json)
python3 benchmarks/capture.py "${shape[@]}" --batch 64 --length 512 | tee "$out/capture.json"
python3 benchmarks/subset.py "${shape[@]}" --batch 8 --length 512 | tee "$out/subset.json"
python3 -m seawall run recipes/lab.yaml --output "$out/lab" --set model.experts_implementation=grouped_mm
python3 benchmarks/efficacy.py --work "$out/efficacy" --jobs 10 --seeds 3 --goals 110 --shortcut --pairs 8 32 \
  --rounds 4 --steps 11 --router-steps 1 --set model.experts_implementation=grouped_mm --set eval.batch_size=256
