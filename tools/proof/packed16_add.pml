/* The packed 16-bit add of metal/kernels/packed16.h, for spin.
 *
 * What is shown, for every interleaving of ADDERS threads, each adding to both halves of one word:
 *
 *   nothing is lost     a half ends as its start plus the sum over the adders that were told
 *                       "added"; every other adder is in the failure counter
 *   nothing hangs       there is no endless run, also where a half or an increment is NaN
 *
 * Model and source, line by line:
 *
 *   model                                    source
 *   word (two bytes, always moved at once)   device atomic_uint* word: one 32-bit access is whole
 *   EMPTY, NAN                               bits of 0 and of a NaN: as bits, NaN == NaN
 *   PLUS                                     widen, add as float, round: a pure function of its
 *                                            arguments, so rounding cannot change who arrives;
 *                                            increments are powers of two, which names adders
 *   LOAD                                     seen = load_bits(word), an atomic_load_explicit
 *   SAME                                     the comparison inside compare-and-swap, on bits
 *   the branches of the exchange             swap_bits(word, seen, next), which is
 *                                            atomic_compare_exchange_weak_explicit: equal and
 *                                            stored; or failed, as it must where the word differs
 *                                            and as the weak form may at any time. A failure puts
 *                                            the current word into `old` (`seen` in the source)
 *   tries < TRIES                            for (uint k = 0; k < kMost; ++k), kMost = kTries = 64
 *   failures++                               count(failures, 1u), an atomic_fetch_add_explicit
 *   added, arrived                           not in the source: what each adder was told
 *
 * Relaxed order needs no more than this: all accesses go to one word, and accesses to one word are
 * in a single order that every thread agrees on (coherence). `failures` is only ever added to.
 *
 * Options (spin -D...), the last three of them planted faults:
 *
 *   ADDERS=n TRIES=n     default 3 and 3. TRIES may be 64, as in the source
 *   STRONG               the exchange never fails without a reason; then nobody may fail at all,
 *                        as long as TRIES >= ADDERS: each failure means that another one arrived
 *   UNBOUNDED            no limit on tries
 *   COMPARE_AS_FLOAT     NaN differs from itself, as in an exchange on atomic_float
 *   LOAD_AND_STORE       no exchange at all: a plain store of the new word
 */

#ifndef ADDERS
#define ADDERS 3
#endif
#ifndef TRIES
#define TRIES 3
#endif

#define EMPTY 0
#define NAN 255
#define PLUS(a, b) ((a) == NAN || (b) == NAN -> NAN : (a) + (b))

#ifdef COMPARE_AS_FLOAT
#define EQUAL(a, b) ((a) == (b) && (a) != NAN)
#else
#define EQUAL(a, b) ((a) == (b))
#endif
#define SAME (EQUAL(word.low, old.low) && EQUAL(word.high, old.high))
#define LOAD atomic { old.low = word.low; old.high = word.high }

typedef Halves { byte low; byte high };

Halves word;
Halves start;
Halves sum;     /* of the increments that arrived, by the adders' own account */
byte failures;
byte arrived;
byte finished;

proctype adder(byte low; byte high) {
  Halves old, new;
  byte tries;
  bool added;

  LOAD;
  do
#ifndef UNBOUNDED
  :: tries == TRIES -> break
  :: tries < TRIES ->
#else
  :: true ->
#endif
    atomic { new.low = PLUS(old.low, low); new.high = PLUS(old.high, high) };
#ifdef LOAD_AND_STORE
    atomic { word.low = new.low; word.high = new.high; added = true };
#else
    if
    :: atomic { SAME -> word.low = new.low; word.high = new.high; added = true }
#ifndef STRONG
    :: LOAD
#else
    :: atomic { !SAME -> old.low = word.low; old.high = word.high }
#endif
    fi;
#endif
    if
    :: added -> break
    :: else
    fi;
#ifndef UNBOUNDED
    tries++
#endif
  od;
  atomic {
    if
    :: added ->
      arrived++;
      sum.low = PLUS(sum.low, low);
      sum.high = PLUS(sum.high, high)
    :: else -> failures++
    fi;
    finished++;
    old.low = 0; old.high = 0; new.low = 0; new.high = 0; tries = 0
  }
}

init {
  byte i;
  byte low, high;

  /* Each half begins as a number or as NaN, and so does each increment. */
  atomic {
    if :: start.low = EMPTY :: start.low = NAN fi;
    if :: start.high = EMPTY :: start.high = NAN fi;
    word.low = start.low;
    word.high = start.high;
    for (i : 0 .. ADDERS - 1) {
      if :: low = 1 << i :: low = NAN fi;
      if :: high = 1 << i :: high = NAN fi;
      run adder(low, high)
    }
  }
  finished == ADDERS;
  assert(arrived + failures == ADDERS);
  assert(word.low == PLUS(start.low, sum.low));
  assert(word.high == PLUS(start.high, sum.high));
#ifdef STRONG
  assert(failures == 0)
#endif
}
