"""What there may be against a record."""

# What is answered in place of an address.
SHORT, TOO_LONG, NO_COUNT, NO_TOKEN, NO_KIND, OUTSIDE, NO_SOURCE, NO_WORD = range(-8, 0)
REASONS = {
    SHORT: "a record goes on behind the end of its group",
    TOO_LONG: "a record is longer than its frame",
    NO_COUNT: "a record has more tokens than its frame has words",
    NO_TOKEN: "a record names a token that its table does not have",
    NO_KIND: "a record holds a kind of change that does not exist",
    OUTSIDE: "a record changes what lies outside of its frame",
    NO_SOURCE: "a record copies from outside of its frame",
    NO_WORD: "a record names a word that the dictionary does not have",
}
