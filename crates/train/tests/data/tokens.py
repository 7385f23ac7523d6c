"""What the tokenizers package makes of texts with the file given."""
import json
import sys

from tokenizers import Tokenizer

tokenizer = Tokenizer.from_file(sys.argv[1])
json.dump([tokenizer.encode(text).ids for text in json.load(sys.stdin)], sys.stdout)
