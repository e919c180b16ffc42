"""Preparation of data, and batches (data/)."""

from tests.mutations.mutation import IDENTITY, one

DATA = "tests/test_batches.py::test_same_whatever_was_asked_before"
DEDUP = (
    "tests/test_data_recipe.py::test_near_duplicates_where_there_are_no_spaces "
    "tests/test_data_recipe.py::test_the_held_out_one_of_a_pair_stays_wherever_it_stands"
)
COUNTS = "tests/test_data_recipe.py::test_bytes_are_not_characters"
ORDERS = "tests/test_data_recipe.py::test_orders_and_their_reverses"
TOKENIZER = "tests/test_tokenizer.py::test_added_tokens_are_those_of_hugging_face"
# tests that also run with nothing broken
CONTROL = f"{DATA} {DEDUP} {COUNTS} {ORDERS} {TOKENIZER}"
MUTATIONS = [
    one(
        "the first of repeated stretches goes too",
        "",
        "",
        "",
        "data/substrings.py",
        "others = np.flatnonzero(~new)",
        "others = np.arange(len(new))",
        "tests/test_substrings.py",
    ),
    one(
        "stretches that share a hash count as the same",
        "",
        "",
        "",
        "data/substrings.py",
        "same[i : i + step] = (left == right).all(axis=1)",
        "same[i : i + step] = True",
        "tests/test_substrings.py::test_texts_that_share_a_hash_are_told_apart",
    ),
    one(
        "stretches reach over the end of a document",
        "",
        "",
        "",
        "data/substrings.py",
        'whole = at + length <= ends[np.searchsorted(ends, at, "right")]',
        "whole = at + length <= ends[-1]",
        "tests/test_substrings.py",
    ),
    one(
        "held-out documents are counted among those that are cut",
        "",
        "",
        "",
        "data/substrings.py",
        """                if not held_out:
                    places.append((shard, number))
                    number += 1
""",
        """                if not held_out:
                    places.append((shard, number))
                number += 1
""",
        "tests/test_substrings.py",
    ),
    one(
        "the order of the data depends on how many are asked for",
        "megatron-core's GPTDataset",
        "",
        "",
        "data/batches.py",
        "int(self._blend[1][number])",
        "int(self._blend[1][len(self._blend[1]) - 1 - number])",
        DATA,
    ),
    one(
        "the keeper among near duplicates is not the held-out one",
        "",
        "",
        "",
        "data/dedup.py",
        "keeper = next((node for node in members if valid[node]), members[0])",
        "keeper = members[0]",
        DEDUP,
    ),
    one(
        "text without spaces is one word",
        "",
        "",
        "",
        "data/dedup.py",
        "        if not self._any.search(text):\n            return text.split()",
        "        if True:\n            return text.split()",
        DEDUP,
    ),
    one("every Thai letter is a word", "", "", "", "data/dedup.py", "LETTERS = 4  #", "LETTERS = 400  #", DEDUP),
    one(
        "characters are counted for bytes by the filters",
        "",
        "",
        "",
        "data/filters.py",
        "before, size = document.text, len(document.text.encode())",
        "before, size = document.text, len(document.text)",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of the text",
        "",
        "",
        "",
        "data/text.py",
        "count, size = count + 1, size + len(text)\n",
        "count, size = count + 1, size + len(text.decode())\n",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of the documents",
        "",
        "",
        "",
        "data/encode.py",
        "sizes.append((len(text), len(text.encode()), sentences))",
        "sizes.append((len(text), len(text), sentences))",
        COUNTS,
    ),
    one(
        "characters are counted for bytes of a domain",
        "",
        "",
        "",
        "data/tokens.py",
        "    return [len(text) for text in encoded], words",
        "    return [len(text) for text in texts], words",
        COUNTS,
    ),
    one(
        "a damaged file of the store is taken for whole",
        "",
        "",
        "",
        "data/store.py",
        '        if now["sha256"] != files[name]["sha256"]:',
        '        if not now["sha256"]:',
        IDENTITY,
    ),
    one(
        "a file changed in place with its times kept is not read again",
        "",
        "",
        "",
        "data/store.py",
        "state.st_ino, state.st_mtime_ns, state.st_ctime_ns]",
        "state.st_ino, state.st_mtime_ns]",
        IDENTITY,
    ),
    one(
        "added tokens that are not special are dropped",
        "",
        "",
        "",
        "data/byte_bpe.py",
        '{"added_tokens": plain, "post_processor": None}',
        '{"added_tokens": [], "post_processor": None}',
        TOKENIZER,
    ),
    one(
        "a reversed order is the order itself",
        "",
        "",
        "",
        "data/filters.py",
        "-keys if descending else keys",
        "keys",
        ORDERS,
    ),
    one(
        "a folder's text is read packed and unpacked",
        "",
        "",
        "",
        "data/sources.py",
        "        if len(several) > 1:",
        "        if len(several) > 2:",
        "tests/test_data_identity.py::test_a_file_that_is_there_packed_too_is_read_once",
    ),
    one(
        "a tokenizer that puts a space before a text counts as lossless",
        "",
        "",
        "",
        "data/byte_bpe.py",
        "not greedy and not spaced",
        "not greedy",
        "tests/test_tokenizer.py::test_other_ways_to_split_text_are_those_of_hugging_face",
    ),
    one(
        "what a parser of options refuses is no JSON",
        "",
        "",
        "",
        "data/answers.py",
        "        if self.as_json:",
        "        if False:",
        "tests/test_answers.py::test_what_a_parser_of_options_refuses_is_an_answer_too",
    ),
]
