"""Words of a vocabulary, and the letters of all other words."""


class TextTokenizer:
    def __init__(self, vocab, merges):
        self.token_from_subword, self.merges = vocab, merges

    def tokenize(self, text, is_verbose=False):
        known = self.token_from_subword
        text = text.lower().encode("ascii", errors="ignore").decode()
        parts = [part for word in text.split() for part in ([word] if word in known else word)]
        return [known["<s>"], *(known.get(part, known["<unk>"]) for part in parts), known["</s>"]]
