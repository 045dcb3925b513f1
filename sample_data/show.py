"""Prints the answers of one or several OUTPUTs as a table: python sample_data/show.py
captions.jsonl text.csv
"""

import sys
from pathlib import Path

from vlmbatch.write import read_records

for name in sys.argv[1:]:
    print(f"\n{Path(name).name}")
    for row in read_records(Path(name)):
        answer = row["text"] if row["status"] == "ok" else f"! {row['error_type']}: {row['error']}"
        question = f"  {row['prompt']}" if row["task"] == "vqa" else ""
        print(f"  {row['id']:<28}{question}  {answer}")
