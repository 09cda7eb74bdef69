// Decodes cells of a replica in a device's memory, a warp to a cell.
//
// The same source is compiled for the host, where tests run it: there the 32 lanes of a warp are a
// loop, and every look at memory is checked against what was allocated. So what the lanes do
// together is written in phases: LANES(lane) { ... } runs for each of them, in any order; what a
// phase writes is read in a later one, behind SYNC(). All else is the same in every lane.
//
// Grammar and names are those of docs/format.md; numbers that Python knows (kinds, tokens, where
// contexts lie in a model, fields of a request) are defined in front of this file by source.py.
// Nothing is trusted: whatever the bytes say, nothing is read or written outside of the replica.

typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long long u64;
typedef long long i64;

#ifdef __CUDACC__
#define FN static __device__ __forceinline__
#define SLOW static __device__ __noinline__
#define LANES(lane) for (int lane = threadIdx.x & 31, once = 1; once; once = 0)
#define SYNC() __syncwarp()
#define UNROLL _Pragma("unroll")
#define TOUCH(address, n)
#define PREFETCH(address) asm volatile("prefetch.global.L1 [%0];" ::"l"(address))
#else
#define FN static inline
#define SLOW static
#ifdef DESCENDING
#define LANES(lane) for (int lane = 31; lane >= 0; lane--)
#else
#define LANES(lane) for (int lane = 0; lane < 32; lane++)
#endif
#define SYNC()
#define UNROLL
#define PREFETCH(address) (void)(address)
#define TOUCH(address, n) touch((u64)(address), (u64)(n))
// Ranges that may be looked at, begin and end of each; and how many looks went elsewhere.
static const u64* allowed_ranges = 0;
static i64 n_allowed = 0;
static i64 n_violations = 0;
static u64 private_begin = 0, private_end = 0;
static bool touch(u64 address, u64 n) {
  if (address >= private_begin && address + n <= private_end) return true;
  for (i64 i = 0; i < n_allowed; i++)
    if (address >= allowed_ranges[2 * i] && address + n <= allowed_ranges[2 * i + 1]) return true;
  n_violations++;
  return false;
}
#endif
#define ONE_LANE LANES(lane) if (lane == 0)
#define LINE_BYTES 128  // of a GPU's caches
#define MOST_NUMBER (1 << 30)  // that is told from others: no record is as long

// -- memory: each look is aligned --------------------------------------------------------------

#ifdef __CUDACC__
template <typename T>
FN T load(const T* p) {
  return *p;
}
template <typename T>
FN void store(T* p, T value) {
  *p = value;
}
#else
template <typename T>
FN T load(const T* p) {
  return TOUCH(p, sizeof(T)) && (u64)p % sizeof(T) == 0 ? *p : (n_violations++, T(0));
}
template <typename T>
FN void store(T* p, T value) {
  if (TOUCH(p, sizeof(T)) && (u64)p % sizeof(T) == 0) *p = value;
  else n_violations++;
}
#endif

// -- lanes -------------------------------------------------------------------------------------

template <typename T>
struct PerLane {
#ifdef __CUDACC__
  T value;
  __device__ __forceinline__ T& operator[](int) { return value; }
#else
  T values[32];
  T& operator[](int lane) { return values[lane]; }
#endif
};

// The bits of the lanes whose value is not 0.
FN u32 ballot(PerLane<int>& flag) {
#ifdef __CUDACC__
  return __ballot_sync(0xFFFFFFFFu, flag.value);
#else
  u32 bits = 0;
  for (int lane = 0; lane < 32; lane++) bits |= (u32)(flag.values[lane] != 0) << lane;
  return bits;
#endif
}

// To each lane's value those of the lanes before it.
FN void add_up(PerLane<int>& sum) {
#ifdef __CUDACC__
  int lane = threadIdx.x & 31;
UNROLL
  for (int step = 1; step < 32; step <<= 1) {
    int before = __shfl_up_sync(0xFFFFFFFFu, sum.value, step);
    if (lane >= step) sum.value += before;
  }
#else
  for (int lane = 1; lane < 32; lane++) sum.values[lane] += sum.values[lane - 1];
#endif
}

// The value of a lane, which may be another one for each that asks.
FN int of_lane(PerLane<int>& value, int from) {
#ifdef __CUDACC__
  return __shfl_sync(0xFFFFFFFFu, value.value, from);
#else
  return value.values[from];
#endif
}

FN i64 of_lane(PerLane<i64>& value, int from) {
#ifdef __CUDACC__
  return __shfl_sync(0xFFFFFFFFu, value.value, from);
#else
  return value.values[from];
#endif
}

FN int lowest_bit(u32 bits) {
  int at = 0;
#ifdef __CUDACC__
  at = __ffs((int)bits) - 1;
#else
  while (!((bits >> at) & 1)) at++;
#endif
  return at;
}

FN i64 least(i64 a, i64 b) { return a < b ? a : b; }
FN i64 most(i64 a, i64 b) { return a > b ? a : b; }

// -- bytes of which any may be asked for -------------------------------------------------------

// From a multiple of 8 on, with room to look 16 bytes behind the last one; 0 elsewhere.
struct Bytes {
  const u8* base;
  int size;
};

FN int byte_of(const Bytes& bytes, int i) {
  return (u32)i < (u32)bytes.size ? (int)load(bytes.base + i) : 0;
}

// Eight bytes of memory that begin at one of any place.
FN u64 word_at(const u64* words, int i) {
  const u64* at = words + (i >> 3);
  int shift = (i & 7) << 3;
  u64 low = load(at);
  return shift ? (low >> shift) | (load(at + 1) << (64 - shift)) : low;
}

FN u64 word_of(const Bytes& bytes, int i) {
  return (u32)i < (u32)bytes.size ? word_at((const u64*)bytes.base, i) : 0;
}

// A LEB128 number, of up to MAX_NUMBER_BYTES, or MOST_NUMBER if that is less; -1 where none ends
// before `end`.
FN int take_number(const Bytes& bytes, int& at, int end) {
  i64 value = 0;
  for (int n = 0; n < MAX_NUMBER_BYTES && at < end; n++) {
    int byte = byte_of(bytes, at++);
    value |= (i64)(byte & 0x7F) << (7 * n);
    if (byte < 0x80) return (int)least(value, MOST_NUMBER);
  }
  return -1;
}

// -- words as eight bytes ----------------------------------------------------------------------

FN u64 repeat_byte(u64 byte) { return (byte & 0xFF) * 0x0101010101010101ull; }

FN u64 add_bytes(u64 a, u64 b) {
  const u64 high = 0x8080808080808080ull;
  return ((a & ~high) + (b & ~high)) ^ ((a ^ b) & high);
}

FN u64 sum_bytes(u64 word, int distance) {
  for (int shift = distance << 3; shift < 64; shift <<= 1) word = add_bytes(word, word << shift);
  return word;
}

// Bytes of 0 or 1 to bytes of no bits or all.
FN u64 fill_bytes(u64 ones) { return (ones << 8) - ones; }

// A mask's bits to bytes.
FN u64 widen(u64 mask) {
  u64 bits = ((mask & 0xFF) * 0x0101010101010101ull) & 0x8040201008040201ull;
  return fill_bytes((bits + 0x7F7F7F7F7F7F7F7Full) >> 7 & 0x0101010101010101ull);
}

// Four bytes of eight, each chosen by four bits.
FN u32 choose_bytes(u64 bytes, u32 which) {
#ifdef __CUDACC__
  return __byte_perm((u32)bytes, (u32)(bytes >> 32), which);
#else
  u32 chosen = 0;
  for (int i = 0; i < 4; i++)
    chosen |= (u32)((bytes >> (8 * ((which >> (4 * i)) & 7))) & 0xFF) << (8 * i);
  return chosen;
#endif
}

// The low bytes of a word to where a mask has bytes; what comes between is anything.
FN u64 spread(u64 bytes, u64 wide) {
  // of each byte, how many the mask has before it
  u64 before = ((wide & 0x0101010101010101ull) * 0x0101010101010101ull) << 8;
  u64 nibbles = (before | before >> 4) & 0x00FF00FF00FF00FFull;
  nibbles |= nibbles >> 8;
  return choose_bytes(bytes, (u32)nibbles & 0xFFFF) |
         (u64)choose_bytes(bytes, (u32)(nibbles >> 32) & 0xFFFF) << 32;
}

FN int count_bits(u32 mask) {
#ifdef __CUDACC__
  return __popc(mask);
#else
  int n = 0;
  for (; mask; mask &= mask - 1) n++;
  return n;
#endif
}

FN int count_values(int mask, int kind) {
  if (kind == LITERAL) return count_bits((u32)mask);
  return (int)(N_VALUES >> ((kind < RESIDUAL ? kind : RESIDUAL) << 3)) & 0xFF;
}

// -- what records are read with ----------------------------------------------------------------

struct Frame {
  u64* words;             // the frame, and zeros or anything behind it
  u64* old;               // room for another
  u8* plain;              // room for an unpacked record
  u8* codes;              // and for the codes of its values
  int room;               // bytes of each of them
  const u64* background;
  int n_bytes, n_words, row_bytes;
};

struct Book {
  const u64* table;
  const u64* words;
  int n_words;
  Bytes model;
  int pixel_bytes;
  int near;
};

FN u8* bytes_of(u64* words) { return (u8*)words; }

// -- words -------------------------------------------------------------------------------------

// What there is against a change of word `w`, or 0.
FN int wrong_change(int kind, int w, int v, int n_values, const Bytes& record, const Frame& frame,
                    const Book& book) {
  if (kind > OLD_RESIDUAL || (kind >= RESIDUAL && book.pixel_bytes == 0)) return NO_KIND;
  if (w < 0 || w >= frame.n_words) return OUTSIDE;
  if (n_values > record.size - v) return SHORT;
  if (kind >= RESIDUAL && w >= frame.n_bytes >> 3) return NO_SOURCE;
  if ((kind == LEFT || kind == LEFT_RESIDUAL) && w == 0) return NO_SOURCE;
  if ((kind == ABOVE || kind == ABOVE_RESIDUAL) &&
      (frame.row_bytes < MIN_ROW_BYTES || w << 3 < frame.row_bytes))
    return NO_SOURCE;
  if (kind == NEAR_WORD && book.near + (int)(word_of(record, v) & 0xFF) >= book.n_words)
    return NO_WORD;
  if (kind == FAR_WORD && (int)(word_of(record, v) & 0xFFFF) >= book.n_words) return NO_WORD;
  return 0;
}

// A change of word `w` that `wrong_change` has nothing against: which of its bytes, and to what, or
// what is added to bytes that earlier changes of the same record may have written.
struct Change {
  u64 wide, fresh;
  int from;  // where in the frame those bytes begin, or -1
  int kind;
};

// All of a change that does not depend on others.
FN Change begin_change(int kind, u64 wide, int w, u64 given, const Frame& frame,
                       const Book& book) {
  Change change = {kind < RESIDUAL ? wide : ~0ull, given, -1, kind};
  switch (kind) {
    case LITERAL: change.fresh = spread(given, wide); break;
    case UNIFORM: change.fresh = repeat_byte(given); break;
    case BACKGROUND: change.fresh = load(frame.background + w); break;
    case NEAR_WORD: change.fresh = load(book.words + book.near + (int)(given & 0xFF)); break;
    case FAR_WORD: change.fresh = load(book.words + (int)(given & 0xFFFF)); break;
    case LEFT:
    case LEFT_RESIDUAL: change.from = (w - 1) << 3; break;
    case ABOVE:
    case ABOVE_RESIDUAL: change.from = (w << 3) - frame.row_bytes; break;
    default: change.fresh = add_bytes(given, load(frame.words + w));
  }
  return change;
}

FN void end_change(const Change& change, int w, const Frame& frame, const Book& book) {
  u64 held = load(frame.words + w);
  u64 fresh = change.fresh;
  if (change.from >= 0) {
    u64 seen = word_at(frame.words, change.from);
    if (change.kind == LEFT_RESIDUAL) {
      // the first bytes count from decoded ones, the others from bytes of this very word
      fresh = add_bytes(fresh, seen >> (64 - 8 * book.pixel_bytes));
      fresh = sum_bytes(fresh, book.pixel_bytes);
    } else {
      fresh = change.kind == ABOVE_RESIDUAL ? add_bytes(fresh, seen) : seen;
    }
  }
  store(frame.words + w, (held & ~change.wide) | (fresh & change.wide));
}

// Up to 32 tokens at a time: where they write, and where their values lie, are sums of what the
// tokens before them say. Those that read words which others of them write wait for these, and only
// for these. The offset after the record, or what there is against it.
FN int apply_words(const Bytes& record, int tokens, int n_tokens, const Frame& frame,
                   const Book& book) {
  int v = tokens + n_tokens;
  if (v > record.size) return SHORT;
  int word = -1;
  for (int first = 0; first < n_tokens;) {
    int left = n_tokens - first;
    PerLane<int> token, escapes, step, n_values, sum_steps, sum_values, kind, wrong, above, ready;
    PerLane<u32> needs;
    PerLane<u64> wide;
    PerLane<Change> change;
    LANES(lane) {
      token[lane] = lane < left ? byte_of(record, tokens + first + lane) : 0;
      escapes[lane] = lane < left && token[lane] == ESCAPE;
    }
    u32 escaped = ballot(escapes);
    int n = escaped ? lowest_bit(escaped) : (int)least(left, 32);
    LANES(lane) {
      const u64* entry = book.table + 4 * token[lane];
      u64 packed = lane < n ? load(entry + 1) : 0;
      wide[lane] = lane < n ? load(entry) : 0;
      step[lane] = (int)least((u32)packed >> 3, MAX_WORDS_IN_FRAME);
      n_values[lane] = (int)(packed >> 32) & 0xFF;
      kind[lane] = (int)(packed >> 40) & 0xFF;
      sum_steps[lane] = step[lane];
      sum_values[lane] = n_values[lane];
    }
    add_up(sum_steps);
    add_up(sum_values);
    LANES(lane) {
      int at = v + sum_values[lane] - n_values[lane];
      wrong[lane] = 0;
      if (lane < n) {
        wrong[lane] = wrong_change(kind[lane], word + sum_steps[lane], at, n_values[lane], record,
                                   frame, book);
        if (step[lane] == 0) wrong[lane] = NO_TOKEN;
      }
    }
    u32 bad = ballot(wrong);
    if (bad) return of_lane(wrong, lowest_bit(bad));
    LANES(lane) {
      needs[lane] = 0;
      above[lane] = 0;
      if (lane < n) {
        change[lane] = begin_change(kind[lane], wide[lane], word + sum_steps[lane],
                                    word_of(record, v + sum_values[lane] - n_values[lane]), frame,
                                    book);
        above[lane] = kind[lane] == ABOVE || kind[lane] == ABOVE_RESIDUAL;
        if (change[lane].from >= 0 && !above[lane] && step[lane] == 1)
          needs[lane] = (1u << lane) >> 1;
      }
    }
    if (ballot(above)) {
      LANES(lane) {
        // those of the lanes that write what is read: words rise from lane to lane
        int begin = above[lane] ? (change[lane].from >> 3) - word : 0;
        int end = above[lane] ? ((change[lane].from + 7) >> 3) - word : 0;
        int writer = 0;
        for (int half = 16; half; half >>= 1)
          if (of_lane(sum_steps, writer + half - 1) < begin) writer += half;
        int its = of_lane(sum_steps, writer), next = of_lane(sum_steps, (writer + 1) & 31);
        if (above[lane] && begin <= its && its <= end) needs[lane] |= 1u << writer;
        if (above[lane] && its < next && next <= end) needs[lane] |= 2u << writer;
      }
    }
    for (u32 waiting = n < 32 ? (1u << n) - 1 : ~0u; waiting;) {
      LANES(lane) { ready[lane] = (waiting >> lane) & 1 && !(needs[lane] & waiting); }
      u32 now = ballot(ready);
      LANES(lane) {
        if (ready[lane]) end_change(change[lane], word + sum_steps[lane], frame, book);
      }
      SYNC();
      waiting &= ~now;
    }
    if (n > 0) {
      word += of_lane(sum_steps, n - 1);
      v += of_lane(sum_values, n - 1);
    }
    first += n;
    if (escaped) {  // and so n is below 32: the escape is next
      if (record.size - v < 2) return SHORT;
      int its_kind = byte_of(record, v), mask = byte_of(record, v + 1);
      v += 2;
      int skip = take_number(record, v, record.size);
      if (skip < 0) return SHORT;
      word += (int)least(skip, MAX_WORDS_IN_FRAME) + 1;
      int its_values = count_values(mask, its_kind);
      int reason = wrong_change(its_kind, word, v, its_values, record, frame, book);
      if (reason) return reason;
      ONE_LANE {
        end_change(begin_change(its_kind, widen((u64)mask), word, word_of(record, v), frame, book),
                   word, frame, book);
      }
      SYNC();
      v += its_values;
      first++;
    }
  }
  return v;
}

// -- copies ------------------------------------------------------------------------------------

FN int predict(const u8* now, const u8* old, int p, const Frame& frame, int rows, int pixel_bytes,
               int shift) {
  int q = p + shift;
  if (q < 0 || q >= frame.n_bytes) q = p;
  int before = load(old + q);
  int left = p >= pixel_bytes ? (int)load(now + p - pixel_bytes) : before;
  int above = p >= rows ? (int)load(now + p - rows) : left;
  int low = left < above ? left : above, high = left < above ? above : left;
  int middle = high < before ? high : before;
  return low > middle ? low : middle;
}

SLOW int apply_copies(const Bytes& record, int at, const Frame& frame, const Book& book) {
  int n_bytes = frame.n_bytes, pixel_bytes = book.pixel_bytes;
  int n_tokens = take_number(record, at, record.size);
  int n_extras = take_number(record, at, record.size);
  int n_literals = take_number(record, at, record.size);
  int predictor = take_number(record, at, record.size);
  if (n_tokens < 0 || n_extras < 0 || n_literals < 0 || predictor < 0) return SHORT;
  if ((i64)n_tokens + n_extras + n_literals > record.size - at) return SHORT;
  if (n_tokens + n_extras + n_literals > n_bytes) return OUTSIDE;
  if (predictor > 0 && (pixel_bytes == 0 || predictor > 2 * n_bytes)) return NO_SOURCE;
  int tokens = at, extras = tokens + n_tokens, last = extras + n_extras, literals = last;
  u8* now = bytes_of(frame.words);
  u8* old = bytes_of(frame.old);
  LANES(lane) {
    for (int w = lane; w < frame.n_words; w += 32) store(frame.old + w, load(frame.words + w));
  }
  SYNC();
  int rows = frame.row_bytes > 0 ? frame.row_bytes : n_bytes;
  int shift = predictor & 1 ? predictor >> 1 : -(predictor >> 1);
  int wide = n_bytes <= 65536 ? 2 : 4;
  i64 mask = ((i64)1 << (8 * wide)) - 1;
  int p = 0, left = n_literals;
  i64 back = n_bytes;
  for (int i = 0; i <= n_tokens; i++) {
    int token = 0;
    int n = left;
    if (i < n_tokens) {
      token = byte_of(record, tokens + i);
      n = token & MORE_LITERALS;
      if (n == MORE_LITERALS) {
        int more = take_number(record, extras, last);
        if (more < 0) return SHORT;
        n = (int)least((i64)n + more, MOST_NUMBER);
      }
    }
    if (n > left || n > n_bytes - p) return OUTSIDE;
    if (predictor == 0) {
      LANES(lane) {
        for (int j = lane; j < n; j += 32) store(now + p + j, (u8)byte_of(record, literals + j));
      }
    } else {
      ONE_LANE {
        for (int j = 0; j < n; j++) {
          int value = predict(now, old, p + j, frame, rows, pixel_bytes, shift);
          store(now + p + j, (u8)(value + byte_of(record, literals + j)));
        }
      }
    }
    SYNC();
    p += n;
    literals += n;
    left -= n;
    if (i == n_tokens) break;
    n = token >> SPAN_SHIFT;
    if (n == MORE_SPAN) {
      int more = take_number(record, extras, last);
      if (more < 0) return SHORT;
      n = (int)least((i64)n + more, MOST_NUMBER);
    }
    n += MIN_SPAN;
    int source = (token >> SOURCE_SHIFT) & 3;
    if (source == UNMOVED) {
      back = n_bytes;
    } else if (source != AGAIN) {
      if (last - extras < wide) return SHORT;
      i64 place = (i64)(word_of(record, extras) & (u64)mask);
      extras += wide;
      back = source == HERE ? place : n_bytes + p - ((p - place) & mask);
    }
    if (n > n_bytes - p) return OUTSIDE;
    // in both frames in one row, and not from the one over into the other
    i64 begin = n_bytes + p - back;
    if (back < 1 || begin < 0 || (begin < n_bytes && begin + n > n_bytes)) return NO_SOURCE;
    if (begin < n_bytes) {
      if (begin != p) {
        LANES(lane) {
          for (int j = lane; j < n; j += 32) store(now + p + j, load(old + begin + j));
        }
      }
    } else {
      // what it goes on into repeats what lies before it
      LANES(lane) {
        for (int j = lane; j < n; j += 32)
          store(now + p + j, load(now + p - back + (back < n ? j % back : j)));
      }
    }
    SYNC();
    p += n;
  }
  if (p != n_bytes || extras != last) return OUTSIDE;
  return last + n_literals;
}

// -- a record ----------------------------------------------------------------------------------

FN int apply_record(const Bytes& record, int at, const Frame& frame, const Book& book) {
  int n_tokens = take_number(record, at, record.size);
  if (n_tokens < 0) return SHORT;
  if (n_tokens <= frame.n_words) return apply_words(record, at, n_tokens, frame, book);
  if (n_tokens == frame.n_words + 2) return apply_copies(record, at, frame, book);
  if (n_tokens != frame.n_words + 1) return NO_COUNT;
  if (frame.n_bytes > record.size - at) return SHORT;
  LANES(lane) {
    for (int w = lane; w < frame.n_words; w += 32)
      store(frame.words + w, word_of(record, at + (w << 3)));
  }
  SYNC();
  return at + frame.n_bytes;
}

// -- unpacking: one lane's work, each bit's meaning depending on those before ------------------

// Where the model of a book's Huffman codes is read, and where the bits are.
struct Bits {
  Bytes packed;
  Bytes model;
  i64 pos;
  bool wrong;
  int word;  // that the next bit is in, and what that and the next one hold; before the first, -2
  u64 low, high;
};

FN u64 packed_word(const Bytes& packed, int word) {
  return word < (packed.size + 7) >> 3 ? load((const u64*)packed.base + word) : 0;
}

// The next 64 bits.
FN u64 bits_at(Bits& bits) {
  int word = (int)(bits.pos >> 6), shift = (int)(bits.pos & 63);
  if (word != bits.word) {
    bits.low = word == bits.word + 1 ? bits.high : packed_word(bits.packed, word);
    bits.high = packed_word(bits.packed, word + 1);
    bits.word = word;
  }
  return shift ? (bits.low >> shift) | (bits.high << (64 - shift)) : bits.low;
}

// What the model holds at a place: where a table lies, or an entry of one.
FN int model_at(Bits& bits, i64 at) {
  if (2 * at + 2 > bits.model.size) {
    bits.wrong = true;
    return 0;
  }
  return load((const u16*)bits.model.base + at);
}

// A symbol in the code whose table lies there.
FN int take_coded(Bits& bits, i64 table) {
  u64 window = bits_at(bits);
  int entry = model_at(bits, table + (i64)(window & CODE_MASK));
  int taken = entry & TAKEN;
  bits.pos += taken;
  return entry & IS_ESCAPE ? (int)(window >> (taken - 8)) & 0xFF : entry >> SYMBOL_SHIFT;
}

FN int take_symbol(Bits& bits, i64 context) { return take_coded(bits, model_at(bits, context)); }

// Bytes of a LEB128 number, unpacked to `out`, not beyond `end`; its value.
FN i64 unpack_number(Bits& bits, i64 context, u8* out, i64& at, i64 end) {
  i64 value = 0;
  int byte = 0x80;
  for (int n = 0; byte >= 0x80 && n < MAX_NUMBER_BYTES && at < end; n++) {
    byte = take_symbol(bits, context);
    store(out + at++, (u8)byte);
    value |= (i64)(byte & 0x7F) << (7 * n);
  }
  return value;
}

// What follows the mark of a record of copies; the bytes of `out` that are filled, below 0 if wrong.
FN i64 unpack_copies(Bits& bits, i64 n_bytes, u8* out, i64 at, i64 room) {
  i64 end = at + N_NUMBERS * MAX_NUMBER_BYTES;
  if (end > room) return SHORT;
  i64 n_tokens = unpack_number(bits, NUMBER_CODE, out, at, end);
  i64 n_extras = unpack_number(bits, NUMBER_CODE, out, at, end);
  i64 n_literals = unpack_number(bits, NUMBER_CODE, out, at, end);
  i64 predictor = unpack_number(bits, NUMBER_CODE, out, at, end);
  if (n_tokens + n_extras + n_literals > n_bytes) return OUTSIDE;
  i64 tokens = at, extras = at + n_tokens, literals = extras + n_extras;
  if (literals + n_literals > room) return SHORT;
  int before = 0;
  for (i64 i = 0; i < n_tokens; i++) {
    before = take_symbol(bits, COPY_MAP + before);
    store(out + tokens + i, (u8)before);
  }
  for (i64 i = 0; i < n_tokens; i++) {
    int token = load(out + tokens + i);
    if ((token & MORE_LITERALS) == MORE_LITERALS)
      unpack_number(bits, LITERALS_CODE, out, extras, literals);
    if (token >> SPAN_SHIFT == MORE_SPAN) unpack_number(bits, SPAN_CODE, out, extras, literals);
    int source = (token >> SOURCE_SHIFT) & 3;
    if (source < MOVED) continue;
    int wide = n_bytes <= 65536 ? 2 : 4;
    for (int j = 0; j < wide && extras < literals; j++)
      store(out + extras++, (u8)take_symbol(bits, (source == HERE ? HERE_CODE : MOVED_CODE) + j));
  }
  // what extras there should have been and are not is found out by who reads the record
  for (; extras < literals; extras++) store(out + extras, (u8)0);
  i64 following = predictor > 0 ? RESIDUAL_MAP : NEXT_MAP;
  before = 0;
  for (i64 i = 0; i < n_literals; i++) {
    before = take_symbol(bits, following + before);
    store(out + literals + i, (u8)before);
  }
  return literals + n_literals;
}

FN i64 put_number(u8* out, i64 value) {
  i64 at = 0;
  for (; value >= 0x80; value >>= 7) store(out + at++, (u8)(value | 0x80));
  store(out + at++, (u8)value);
  return at;
}

// Which code a value has, in the scratch of a record's values: the one for the value before, or none,
// for its byte is there, or the one of that number.
enum { NEXT = 255, KNOWN = 254 };

// Unpack the record that begins at a bit, in one lane; the bytes of `frame.plain` that are filled,
// or what there is against it. A raw one is unpacked, too.
FN i64 unpack_record(Bits& bits, const Frame& frame, const Book& book) {
  u8* out = frame.plain;
  u8* codes = frame.codes;
  int count = take_symbol(bits, COUNT_CODE);
  if (count == COPIED) {
    i64 at = put_number(out, frame.n_words + 2);
    return unpack_copies(bits, frame.n_bytes, out, at, frame.room);
  }
  i64 n_tokens = count;
  if (count == LONG_COUNT) {
    n_tokens = (i64)(bits_at(bits) & 0xFFFFFF);
    bits.pos += 24;
  }
  if (n_tokens > frame.n_words + 1) return NO_COUNT;
  i64 at = put_number(out, n_tokens);
  if (n_tokens == frame.n_words + 1) {
    int from = (int)((bits.pos + 7) >> 3);
    if (frame.n_bytes > bits.packed.size - from) return SHORT;
    if (at + frame.n_bytes > frame.room) return SHORT;
    for (int i = 0; i < frame.n_bytes; i++)
      store(out + at + i, (u8)byte_of(bits.packed, from + i));
    bits.pos = (i64)(from + frame.n_bytes) << 3;
    return at + frame.n_bytes;
  }
  i64 values = at + n_tokens, n_values = 0;
  i64 context = START_CODE;
  i64 room = frame.room - values;
  if (room < 0) return SHORT;
  for (i64 i = 0; i < n_tokens; i++) {
    int token = take_symbol(bits, context);
    context = TOKEN_MAP + token;
    store(out + at + i, (u8)token);
    u64 packed = load(book.table + 4 * token + 1);
    int n_more = (int)(packed >> 32) & 0xFF, kind = (int)(packed >> 40) & 0xFF;
    if (token == ESCAPE) {
      kind = take_symbol(bits, KIND_CODE);
      int mask = take_symbol(bits, MASK_CODE);
      n_more = count_values(mask, kind);
      if (n_values + 2 + MAX_NUMBER_BYTES > room) return TOO_LONG;
      i64 begin = n_values;
      store(out + values + n_values++, (u8)kind);
      store(out + values + n_values++, (u8)mask);
      unpack_number(bits, SKIP_CODE, out + values, n_values, room);
      for (i64 j = begin; j < n_values; j++) store(codes + j, (u8)KNOWN);
    }
    if (n_values + n_more > room) return TOO_LONG;
    // the first value's code, and behind it NEXT
    for (int j = 0; j < n_more; j++) store(codes + n_values + j, (u8)NEXT);
    if (n_more > 0) {
      i64 first = FIRST_MAP + token;
      if (kind >= RESIDUAL)
        first = FIRST_RESIDUAL_MAP + (kind <= OLD_RESIDUAL ? kind - RESIDUAL : 0);
      store(codes + n_values, (u8)((model_at(bits, first) - TABLES_AT) >> CODE_BITS));
    }
    n_values += n_more;
  }
  i64 residuals = model_at(bits, RESIDUAL_TABLES_AT), map = NEXT_MAP;
  int before = 0;
  for (i64 i = 0; i < n_values; i++) {
    int given = load(codes + i);
    if (given == KNOWN) continue;
    if (given == NEXT) {
      before = take_symbol(bits, map + before);
    } else {
      i64 table = TABLES_AT + ((i64)given << CODE_BITS);
      map = table >= residuals ? RESIDUAL_MAP : NEXT_MAP;
      before = take_coded(bits, table);
    }
    store(out + values + i, (u8)before);
  }
  return values + n_values;
}

// Unpack a record and apply it; the bit after it.
SLOW i64 apply_packed(const Bytes& packed, i64 pos, const Frame& frame, const Book& book) {
  PerLane<i64> after, size;
  ONE_LANE {
    Bits bits = {packed, book.model, pos, false, -2, 0, 0};
    size[lane] = unpack_record(bits, frame, book);
    if (size[lane] >= 0 && (bits.wrong || bits.pos > (i64)packed.size << 3)) size[lane] = SHORT;
    after[lane] = bits.pos;
  }
  SYNC();
  Bytes record = {frame.plain, (int)of_lane(size, 0)};
  if (record.size < 0) return record.size;
  int end = apply_record(record, 0, frame, book);
  return end < 0 ? end : of_lane(after, 0);
}

// -- sparse records ----------------------------------------------------------------------------

FN i64 coordinate(const Bytes& bytes, i64 at, int width) {
  return (i64)(word_of(bytes, at) & (((u64)1 << (8 * width)) - 1));
}

// Decode the frame of record `number`; the records begin with that of the group's first frame.
SLOW i64 apply_sparse(const Bytes& records, i64 at, i64 number, const Frame& frame) {
  i64 n_bytes = frame.n_bytes, row_bytes = frame.row_bytes, first = at;
  i64 across = row_bytes > 0 ? row_bytes : 1;
  i64 longest = most(n_bytes / across, row_bytes);
  int width = longest <= 1 << 8 ? 1 : longest <= 1 << 16 ? 2 : 4;
  i64 changed = 0;
  bool is_raw = true;
  for (i64 i = 0; i <= number; i++) {
    if (at >= records.size) return SHORT;
    int tag = byte_of(records, at);
    if (tag > RAW_TAG) return NO_KIND;
    is_raw = tag == RAW_TAG;
    changed = (i64)(word_of(records, at + 1) & 0xFFFFFFFF);
    if (!is_raw && i == 0) return NO_SOURCE;
    if (!is_raw && changed * (2 * width + 2) > n_bytes) return TOO_LONG;
    i64 size = is_raw ? 1 + n_bytes : SPARSE_HEADER_BYTES + changed * (2 * width + 2);
    if (size > records.size - at) return SHORT;
    if (i < number) at += size;
  }
  i64 raw = is_raw ? at : first;
  LANES(lane) {
    for (i64 w = lane; w < frame.n_words; w += 32)
      store(frame.words + w, word_of(records, raw + 1 + (w << 3)));
  }
  SYNC();
  if (is_raw) return 0;
  i64 rows = at + SPARSE_HEADER_BYTES, columns = rows + changed * width;
  i64 values = columns + changed * width;
  u8* now = bytes_of(frame.words);
  PerLane<int> outside;
  LANES(lane) {
    outside[lane] = 0;
    for (i64 j = lane; j < changed; j += 32) {
      i64 row = coordinate(records, rows + j * width, width);
      i64 i = row * row_bytes + coordinate(records, columns + j * width, width);
      if (i >= n_bytes) outside[lane] = 1;
      else store(now + i, (u8)(load(now + i) + byte_of(records, values + 2 * j)));
    }
  }
  SYNC();
  return ballot(outside) ? OUTSIDE : 0;
}

// -- a cell ------------------------------------------------------------------------------------

// Where a cell's frame is read from: a group, and its number there; or a frame as it is.
struct Stored {
  const u64* whole;  // the frame itself, or 0
  Bytes bytes;
  i64 records;       // where they begin
  i64 number, n_frames, key, earlier;
  int flags, chosen;
};

FN i64 field(const i64* request, int name) { return load(request + name); }

template <typename T>
FN const T* address(const i64* request, int name) {
  return (const T*)field(request, name);
}

// The bytes of a chunk, by what an index has for it: 8 before them say how many there are.
FN Bytes chunk_at(const i64* request, u32 entry) {
  i64 shift = field(request, BLOCK_SHIFT);
  i64 at = (i64)(entry - 1) << 3, block = at >> shift;
  const i64* blocks = address<i64>(request, BLOCKS);
  Bytes bytes = {(const u8*)0, -1};
  if (block >= field(request, N_BLOCKS)) return bytes;
  at &= ((i64)1 << shift) - 1;
  const u8* begin = (const u8*)load(blocks + block) + at;
  i64 size = load((const i64*)begin);
  bytes.base = begin + 8;
  if (size >= 0 && size <= least(((i64)1 << shift) - at - 8 - GUARD_BYTES, MOST_NUMBER))
    bytes.size = (int)size;
  return bytes;
}

FN const u64* padded_frame(const i64* request, int frames, int n_frames, i64 i) {
  if (i < 0 || i >= field(request, n_frames)) return 0;
  return (const u64*)(address<u8>(request, frames) + i * field(request, PADDED));
}

// Find a cell's frame; below 0 where what is said of it is wrong.
FN i64 find(const i64* request, i64 cell, Stored& found) {
  i64 stack = field(request, STACK), lanes = field(request, N_LANES);
  found.whole = padded_frame(request, BACKGROUNDS, N_BACKGROUNDS, 0);
  if (cell < 0) {
    found.whole = padded_frame(request, PINS, N_PINS, -1 - cell);
    return found.whole ? 0 : NO_CELL;
  }
  if (cell >= field(request, N_CELLS)) return NO_CELL;
  const u32* index = address<u32>(request, INDEX);
  if (field(request, RECORD_KIND) == RAW) {
    u32 entry = load(index + cell);
    if (!entry) return 0;
    Bytes chunk = chunk_at(request, entry);
    if (chunk.size < field(request, FRAME_BYTES)) return SHORT;
    found.whole = (const u64*)chunk.base;
    return 0;
  }
  i64 row = cell / stack, k = cell - row * stack, lane = row % lanes;
  row /= lanes;
  i64 gop_length = field(request, GOP), per_lane = field(request, OPEN_PER_LANE);
  i64 gop = (row + k) / gop_length;
  i64 map_cell = (row + k - gop * gop_length) * stack + k;
  i64 place = lane * per_lane + gop % per_lane, map_at = 0;
  const i64* open = address<i64>(request, OPEN) + place * N_OPEN_FIELDS;
  bool is_open = load(open + OPEN_GOP) == gop && row < load(open + OPEN_NEXT);
  const u16* map = 0;
  if (is_open) {
    found.flags = (int)load(open + OPEN_FLAGS);
    found.chosen = (int)load(open + OPEN_BACKGROUND);
    found.n_frames = load(open + OPEN_FRAMES);
    found.bytes.base = address<u8>(request, OPEN_BYTES) + place * field(request, OPEN_ROOM);
    i64 size = least(load(open + OPEN_SIZE), field(request, OPEN_ROOM) - GUARD_BYTES);
    found.bytes.size = (int)least(size, MOST_NUMBER);
    found.records = 0;
    map = address<u16>(request, OPEN_MAPS) + place * field(request, MAP_CELLS);
  } else {
    u32 entry = load(index + gop * lanes + lane);
    if (!entry) return 0;
    found.bytes = chunk_at(request, entry);
    if (found.bytes.size < CHUNK_HEADER_BYTES) return SHORT;
    u64 header = word_of(found.bytes, 0);
    found.flags = (int)(header & 0xFF);
    found.chosen = (int)(header >> 8) & 0xFF;
    found.n_frames = (i64)(header >> 16) & 0xFFFF;
    found.earlier = (i64)(header >> 32);
    found.key = field(request, RECORD_KIND) == DELTA ? found.n_frames >> 1 : 0;
    found.records = map_at = CHUNK_HEADER_BYTES;
    if (found.flags & MAP_FLAG) found.records += 2 * gop_length * stack;
  }
  if (found.n_frames > gop_length * stack) return NO_COUNT;
  found.number = map_cell / stack;
  if (found.flags & MAP_FLAG)
    found.number = is_open ? (field(request, MAP_CELLS) ? (i64)load(map + map_cell) : NO_FRAME)
                           : (i64)(word_of(found.bytes, map_at + 2 * map_cell) & 0xFFFF);
  if (found.number < found.n_frames) found.whole = 0;
  return 0;
}

FN i64 take_book(const i64* request, int number, bool packed, Book& book) {
  if (number >= field(request, N_BOOKS)) return NO_BOOK;
  const u8* here = address<u8>(request, BOOKS) + number * CODEBOOK_BYTES;
  const u32* said = (const u32*)here;
  u32 table_at = load(said + TABLE_AT / 4);
  book.table = (const u64*)(here + table_at);
  book.words = (const u64*)(here + load(said + DICTIONARY_AT / 4));
  book.n_words = load(said + N_WORDS_AT / 4);
  book.model.base = here + load(said + MODEL_AT / 4);
  book.model.size = load(said + MODEL_BYTES_AT / 4);
  if (!table_at || (packed && book.model.size == 0)) return NO_BOOK;
  u64 last = load(book.table + 4 * ESCAPE + 1);
  book.pixel_bytes = (int)(last >> 48) & 0xFFFF;
  if (book.pixel_bytes > 8) return NO_BOOK;
  u64 near = load(book.table + 4 * ESCAPE + 2);
  if (near > 0xFFFF) return NO_BOOK;
  book.near = (int)near;
  return 0;
}

// Walk from the keyframe to a group's frame; below 0 if a record is wrong.
FN i64 walk(const i64* request, const Stored& found, Frame& frame) {
  if (field(request, RECORD_KIND) == SPARSE)
    return apply_sparse(found.bytes, found.records, found.number, frame);
  bool packed = (found.flags & PACKED_FLAG) != 0;
  Book book;
  i64 wrong = take_book(request, (found.flags >> CODEBOOK_SHIFT) & CODEBOOK_MASK, packed, book);
  if (wrong) return wrong;
  // Packed records are counted in bits from their first record on.
  Bytes bytes = found.bytes;
  i64 first = found.records;
  if (packed) {
    if (frame.room == 0) return NO_BOOK;
    bytes.base += first;  // a multiple of 8, but for maps of an odd number of words
    bytes.size -= first;
    i64 off = (i64)((u64)bytes.base & 7);
    bytes.base -= off;
    bytes.size += off;
    first = off << 3;
    if (bytes.size < 0) return SHORT;
  }
  i64 at = first;
  i64 n_later = most(found.number - found.key, 0) + 1;
  i64 n = n_later + most(found.key - found.number, 0);
  for (i64 i = 0; i < n; i++) {
    if (i == n_later) at = first + found.earlier;
    at = packed ? apply_packed(bytes, at, frame, book)
                : apply_record(bytes, (int)least(at, MOST_NUMBER), frame, book);
    if (at < 0) return at;
  }
  return 0;
}

// Words from anywhere to bytes anywhere; both are multiples of what `n_bytes` is one of.
FN void put_frame(u8* out, const u64* words, i64 n_bytes) {
  LANES(lane) {
    if (n_bytes % 8 == 0) {
      for (i64 i = lane; i < n_bytes >> 3; i += 32) store((u64*)out + i, load(words + i));
    } else if (n_bytes % 4 == 0) {
      for (i64 i = lane; i < n_bytes >> 2; i += 32)
        store((u32*)out + i, load((const u32*)words + i));
    } else {
      for (i64 i = lane; i < n_bytes; i += 32) store(out + i, load((const u8*)words + i));
    }
  }
}

FN void decode_cell(const i64* request, i64 i, u64* shared, u8* scratch) {
  i64 n_bytes = field(request, FRAME_BYTES);
  const i64* cells = request + N_FIELDS;
  Stored found = {};
  Frame frame = {};
  frame.n_bytes = n_bytes;
  frame.n_words = (n_bytes + 7) >> 3;
  frame.row_bytes = field(request, ROW_BYTES);
  // the frame itself where it is fastest, if it fits
  i64 padded = field(request, PADDED);
  frame.old = (u64*)scratch;
  scratch += padded;
  frame.words = shared;
  if (!field(request, IS_SHARED)) {
    frame.words = (u64*)scratch;
    scratch += padded;
  }
  frame.room = field(request, RECORD_ROOM);
  frame.plain = scratch;
  frame.codes = scratch + frame.room + GUARD_BYTES;
  i64 wrong = find(request, load(cells + i), found);
  if (wrong >= 0 && !found.whole) {
    // what a group has lies together: all of it is on its way while the frame is begun
    LANES(lane) {
      for (i64 at = (i64)lane * LINE_BYTES; at < found.bytes.size; at += 32 * LINE_BYTES)
        PREFETCH(found.bytes.base + at);
    }
    frame.background = padded_frame(request, BACKGROUNDS, N_BACKGROUNDS, found.chosen);
    wrong = frame.background ? 0 : NO_CELL;
    if (wrong >= 0) {
      LANES(lane) {
        for (i64 w = lane; w < padded >> 3; w += 32)
          store(frame.words + w, load(frame.background + w));
      }
      SYNC();
      wrong = walk(request, found, frame);
      found.whole = frame.words;
    }
  }
  if (wrong < 0) {
    found.whole = padded_frame(request, BACKGROUNDS, N_BACKGROUNDS, 0);
    i64* status = (i64*)field(request, STATUS);
    ONE_LANE { store(status, wrong); }
  }
  SYNC();
  put_frame((u8*)field(request, OUT) + i * n_bytes, found.whole, n_bytes);
  SYNC();
}

// -- pieces: bytes that an update puts or moves ------------------------------------------------

// A piece is where to, where from, and how many bytes; none overlaps another's source.
FN void put_piece(const i64* pieces, i64 i) {
  u8* to = (u8*)load(pieces + 1 + 3 * i);
  const u8* from = (const u8*)load(pieces + 2 + 3 * i);
  i64 n = load(pieces + 3 + 3 * i);
  LANES(lane) {
    i64 done = 0;
    if ((((u64)to | (u64)from) & 7) == 0) {
      done = n & ~(i64)7;
      for (i64 j = (i64)lane << 3; j < done; j += 256)
        store((u64*)(to + j), load((const u64*)(from + j)));
    }
    for (i64 j = done + lane; j < n; j += 32) store(to + j, load(from + j));
  }
}

// -- entries -----------------------------------------------------------------------------------

#ifdef __CUDACC__

extern "C" __global__ void decode_cells(const i64* request) {
  extern __shared__ u64 shared[];
  i64 warp = threadIdx.x >> 5, warps = blockDim.x >> 5;
  i64 n_warps = warps * gridDim.x, me = blockIdx.x * warps + warp;
  i64 words = field(request, PADDED) >> 3;
  u8* scratch = (u8*)field(request, SCRATCH) + me * field(request, SCRATCH_BYTES);
  for (i64 i = me; i < field(request, N_WANTED); i += n_warps)
    decode_cell(request, i, shared + warp * words, scratch);
}

extern "C" __global__ void put_pieces(const i64* pieces) {
  i64 warps = blockDim.x >> 5;
  i64 n = load(pieces);
  for (i64 i = blockIdx.x * warps + (threadIdx.x >> 5); i < n; i += warps * gridDim.x)
    put_piece(pieces, i);
}

#else

// What the kernels do, as `n_warps` warps that run one after the other. Return how many looks at
// memory, or how unaligned ones, went where they must not.
extern "C" i64 decode_cells(const i64* request, i64 n_warps, u64* shared, i64 shared_bytes,
                            const u64* ranges, i64 n_ranges) {
  allowed_ranges = ranges;
  n_allowed = n_ranges;
  n_violations = 0;
  private_begin = (u64)shared;
  private_end = private_begin + (u64)shared_bytes;
  for (i64 me = 0; me < n_warps; me++) {
    u8* scratch = (u8*)field(request, SCRATCH) + me * field(request, SCRATCH_BYTES);
    for (i64 i = me; i < field(request, N_WANTED); i += n_warps) decode_cell(request, i, shared, scratch);
  }
  return n_violations;
}

extern "C" i64 put_pieces(const i64* pieces, i64 n_warps, const u64* ranges, i64 n_ranges) {
  (void)n_warps;
  allowed_ranges = ranges;
  n_allowed = n_ranges;
  n_violations = 0;
  private_begin = private_end = 0;
  for (i64 i = load(pieces) - 1; i >= 0; i--) put_piece(pieces, i);
  return n_violations;
}

#endif
