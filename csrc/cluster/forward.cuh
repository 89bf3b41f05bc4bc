// The forward recurrence, way 2: a cluster computes eight sequences in one head and direction, all steps.
//
// A block keeps its share of the head's recurrent weights, most of it in registers as the first operand of the product:
// gate rows are its M, the sequences its N. At the end of a step each block sends its slice of the new state to all of
// the cluster by asynchronous stores, which count on a barrier where they arrive. There are two buffers and no barrier
// of the cluster in the loop: a block sends the state that follows step t + 1 only when it has received that of step t
// from all warps of all blocks, which therefore have read the buffer that it overwrites. Partial sums have two buffers
// for the same reason: the warps of a block that share units may be a step apart. A reset is the sender sending zero.
#pragma once

#include "../arguments.h"
#include "../memory.cuh"
#include "../own.cuh"
#include "../place.cuh"
#include "forward_product.cuh"

namespace fastrnn::cluster {

// The word4 that the lane sends, of an item's `h` of which each lane has one unit and one or two columns.
template <class P>
DEVICE word4 gather_units(const ForwardLane<P>& me, const float (&h)[P::COLUMNS]) {
  using Element = typename P::Element;
  word4 units;
  if constexpr (P::WORD_UNITS == 8) {
    uint32_t pair;
    if constexpr (P::COLUMNS == 2) {
      pair = Element::pack(h[0], h[1]);
    } else {
      pair = me.k_warp % 2 ? Element::pack(0.f, h[0]) : Element::pack(h[0], 0.f);
    }
    pair = device::transpose(pair);
#pragma unroll
    for (int e = 0; e < 4; ++e) units.x[e] = device::shuffle(pair, me.sent_column() * 4 + e);
  } else {
    // Of two columns, lanes of even units want one and those of odd units the other. Each asks for its four units in
    // an order of its own, so that whoever is asked is asked for the same column by all.
    const int odd = P::COLUMNS == 2 ? me.g % 2 : 0, first = (me.sent_unit() + odd) * 4 + me.q;
    uint32_t got[4];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float asked = P::COLUMNS == 2 && (me.g + e) % 2 ? h[P::COLUMNS - 1] : h[0];
      got[e] = device::shuffle(Element::from_float(asked), first ^ e * 4);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) units.x[e] = odd ? got[e ^ 1] : got[e];
  }
  return units;
}

// Where the shared memory begins of each block that the lane sends to.
template <class P>
DEVICE void find_receivers(const ForwardLane<P>& me, const char* shared, device::remote (&receivers)[P::RECEIVERS]) {
#pragma unroll
  for (int r = 0; r < P::RECEIVERS; ++r) {
    const int block = r * me.SENDERS + me.sender();
    receivers[r] = device::map(shared, block < P::BLOCKS ? block : 0);
  }
}

// Sends a word4 of units of a sequence to every block, to its buffer of the next state and to count on its barrier,
// both given from where shared memory begins.
template <class P>
DEVICE void send(const ForwardLane<P>& me, const word4& units, const device::remote (&receivers)[P::RECEIVERS], int to,
                 int arrival) {
#pragma unroll
  for (int r = 0; r < P::RECEIVERS; ++r) {
    if (P::BLOCKS % me.SENDERS == 0 || r * me.SENDERS + me.sender() < P::BLOCKS) {
      device::store_async(receivers[r] + to, units, receivers[r] + arrival);
    }
  }
}

// Waits until the cluster's blocks are there and their barriers and first states are too.
template <class P>
DEVICE void start(uint64_t* arrivals) {
  if constexpr (P::BLOCKS == 1) {
    device::block_barrier();
  } else {
    if (device::thread() == 0) {
      for (int i = 0; i < 2 * P::ARRIVALS; ++i) device::mbarrier_init(arrivals + i, 1);
      device::mbarrier_init_fence();
      for (int i = 0; i < P::ARRIVALS; ++i) device::mbarrier_expect(arrivals + i, 0);  // each block has the first state
    }
    device::cluster_arrive();
    device::cluster_wait();
  }
}

template <class P>
KERNEL(P::THREADS)
forward_kernel(ForwardArguments a) {
  static_assert(P::FITS);
  using Cell = typename P::Cell;
  using Element = typename P::Element;
  using Word = typename P::Word;
  using SavedWord = typename Element::Saved::Word;
  constexpr int X_GATES = Cell::X_GATES, U_GATES = Cell::U_GATES, STATES = Cell::STATES, SAVED = Cell::SAVED;
  constexpr int PARAMETERS = Cell::PARAMETERS, INPUTS = Cell::INPUTS;
  constexpr int ITEMS = P::ITEMS, COLUMNS = P::COLUMNS;

  const Place place(a);
  const int first = place.first, D = place.D, H = a.H, wide = place.wide;
  const bool second = place.direction == 1, vectors = D % P::WORD_UNITS == 0;

  // What this lane finishes: units `unit` + 8 i of columns `column` + j; and sends: a word4 from `sent_unit` + 8 i on.
  const ForwardLane<P> me;
  const int sent_unit = me.item_unit(0) + me.sent_unit(), sent_column = me.sent_column();
  const int unit = me.item_unit(0) + me.g, column = me.column(), head_unit = place.head * D + unit;
  auto inside = [&](int i, int j) { return unit + 8 * i < D && first + column + j < a.B; };

  char* shared = device::shared_memory();
  uint64_t* arrivals = reinterpret_cast<uint64_t*>(shared);  // [2][ARRIVALS]
  char* state = shared + P::BARRIER_BYTES;                   // [2][UNITS / WORD_UNITS][ROWS][WORD_UNITS]
  char* partial = state + 2 * P::STATE_BYTES;                // [2][WARPS][K_WARPS][ITEMS][32]
  char* rest = partial + 2 * P::PARTIAL_BYTES + (me.m_warp * P::K_WARPS + me.k_warp) * P::SHARED_TILES * P::TILE_BYTES +
               me.lane * sizeof(word4);

  word4 w[P::REGISTER_TILES];
  load_weights<P>(me, static_cast<const Word*>(a.w_hh[second]) + int64_t(place.head) * U_GATES * D * D, D, w, rest);

  // The states before the first step: this lane's own, and h for the product, of which every block has a copy.
  const uint32_t cut_first = device::ballot(!place.backwards && place.load_reset(a, 0, place.asked) != 0);
  const int64_t state_row = int64_t(place.direction) * a.B + first;
  Values<STATES> states[ITEMS][COLUMNS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      const bool zero = !inside(i, j) || (cut_first >> (column + j) & 1);
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        const Word* from =
            static_cast<const Word*>(pick<STATES>(a.states0, s)) + (state_row + column + j) * H + head_unit + 8 * i;
        states[i][j][s] = zero ? 0.f : Element::to_float(*from);
      }
    }
  }
  auto state_word = [](int k, int row) { return (k * P::ROWS / P::WORD_UNITS + slot(row)) * sizeof(word4); };
  for (int i = device::thread(); i < P::UNITS / P::WORD_UNITS * P::ROWS; i += P::THREADS) {
    const int row = i % P::ROWS, k = i / P::ROWS * P::WORD_UNITS;
    const bool zero = first + row >= a.B || (cut_first >> row & 1);
    const Word* from = static_cast<const Word*>(a.states0[0]) + (state_row + row) * H + place.head * D + k;
    store(state + state_word(k, row), Element::operand(load_row(from, zero ? 0 : D - k, vectors)));
  }

  Values<U_GATES> bias[ITEMS];
  const Word* b_hh = static_cast<const Word*>(a.b_hh[second]);
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int gate = 0; gate < U_GATES; ++gate) {
      const bool none = Cell::ADDS || !b_hh || unit + 8 * i >= D;
      bias[i][gate] = none ? 0.f : Element::to_float(b_hh[int64_t(gate) * H + head_unit + 8 * i]);
    }
  }

  Values<PARAMETERS> parameters[ITEMS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
    load_parameters<P>(a, place.direction, head_unit + 8 * i, unit + 8 * i < D, parameters[i]);
  }

  // The bit of an item's sequence in a ballot; none where the item lies outside of the batch or the head.
  uint32_t own[ITEMS][COLUMNS];
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) own[i][j] = inside(i, j) ? 1u << (column + j) : 0;
  }

  // Where the step's rows begin, in elements.
  const int dt = place.backwards ? -1 : 1, t_first = place.backwards ? a.T - 1 : 0;
  const int64_t row = int64_t(t_first) * a.B + first, directed = int64_t(place.direction) * a.T * a.B + row;
  // A block on its own keeps strides and places in registers; one of a cluster computes them while it waits.
  constexpr bool ALONE = P::BLOCKS == 1;
  auto keep = [](int64_t stride) { return ALONE ? device::hide(stride) : stride; };
  const int64_t row_step = keep(int64_t(dt) * a.B * H), gx_step = keep(row_step * X_GATES);
  const int64_t ys_step = keep(row_step * a.directions);
  int64_t gates_at = (directed + column) * SAVED * H + head_unit;
  int64_t ys_at = (row + column) * wide + place.direction * H + head_unit;
  int64_t reset_at = int64_t(place.backwards ? a.T - 1 : 1) * a.B + place.asked;

  // What a step reads from memory is asked for when the one before begins: gx, its inputs, and whether the state is cut
  // that leaves the step. Items that lie outside read what belongs to another, for the loads to need no condition, and
  // drop it.
  const Word* from[COLUMNS];
  int64_t inputs_at[COLUMNS];
  int beside[ITEMS];
#pragma unroll
  for (int j = 0; j < COLUMNS; ++j) {
    const int n = first + column + j;
    const int64_t sequence = directed - first + (n < a.B ? n : a.B - 1);
    from[j] = static_cast<const Word*>(a.gx) + sequence * X_GATES * H + place.head * D + (unit < D ? unit : D - 1);
    inputs_at[j] = sequence * H + place.head * D + (unit < D ? unit : D - 1);
  }
#pragma unroll
  for (int i = 0; i < ITEMS; ++i) beside[i] = unit + 8 * i < D ? 8 * i : 0;
  uint32_t gx[ITEMS][COLUMNS][X_GATES], reset;
  Word fed[ITEMS][COLUMNS][ROOM<INPUTS>];
  Values<X_GATES> x[ITEMS][COLUMNS];
  Values<INPUTS> inputs[ITEMS][COLUMNS];
  uint32_t live, cuts;
  auto load_step = [&](int t, bool is_last) {
    const int64_t on = is_last ? 0 : gx_step;
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
      for (int gate = 0; gate < X_GATES; ++gate) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) gx[i][j][gate] = from[j][int64_t(gate) * H + beside[i]];
      }
      from[j] += on;
      if constexpr (INPUTS > 0) {
#pragma unroll
        for (int i = 0; i < ITEMS; ++i) load_inputs<P>(a, inputs_at[j] + beside[i], true, fed[i][j]);
        inputs_at[j] += is_last ? 0 : row_step;
      }
    }
    const int64_t at = ALONE ? reset_at : int64_t(masks::exit(t, place.backwards)) * a.B + place.asked;
    reset = place.load_reset(a, masks::exit(t, place.backwards), at);
    reset_at += dt * a.B;
  };
  // What step `t` computes with: of a sequence that has ended nothing, whatever may lie there.
  auto take_step = [&](int t, bool is_last) {
    live = device::ballot(masks::live(t, place.length));
    cuts = device::ballot(reset != 0 && !is_last);
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
#pragma unroll
        for (int gate = 0; gate < X_GATES; ++gate) {
          x[i][j][gate] = live & own[i][j] ? Element::to_float(static_cast<Word>(gx[i][j][gate])) : 0.f;
        }
        if constexpr (INPUTS > 0) take_inputs<P>(fed[i][j], live & own[i][j], inputs[i][j]);
      }
    }
  };
  if (a.T > 0) {
    load_step(t_first, a.T == 1);
    if (ALONE) take_step(t_first, a.T == 1);
  }
  start<P>(arrivals);

  device::remote receivers[P::RECEIVERS];
  if (!ALONE) find_receivers<P>(me, shared, receivers);

  word4 ahead[P::LOOKAHEAD], b[P::STATE_PAIRS];
  auto look_at_state = [&](int buffer) {
#pragma unroll
    for (int pair = 0; pair < P::STATE_PAIRS && 2 * pair < P::K_TILES; ++pair) {
      b[pair] = load_state<P>(me, state + buffer * P::STATE_BYTES, 2 * pair);
    }
  };
  if (P::BLOCKS == 1) look_at_state(0);

  // What a step leaves to be stored: ys, as a row's word4 where there are others to send it to, else as it is computed;
  // the other states; and what is saved, two 16-bit values in a word.
  constexpr bool IN_PAIRS = ALONE && sizeof(SavedWord) == 2;
  constexpr int SAVED_WORDS = IN_PAIRS ? (SAVED + 1) / 2 : SAVED;
  word4 rows[ITEMS];
  Word ys[ITEMS][COLUMNS];
  Values<STATES - 1> others[ITEMS][COLUMNS];
  uint32_t words[ITEMS][COLUMNS][ROOM<SAVED_WORDS>];
  auto publish = [&](int t) {
    const int64_t row_now = int64_t(device::hide(t)) * a.B + first;
    if (!ALONE) {
      ys_at = (row_now + column) * wide + place.direction * H + head_unit;
      gates_at = (int64_t(place.direction) * a.T * a.B + row_now + column) * SAVED * H + head_unit;
    }
#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      if (!ALONE && me.sender() == 0 && first + sent_column < a.B) {
        const int u = sent_unit + 8 * i;
        const int64_t at = (row_now + sent_column) * wide + place.direction * H + place.head * D + u;
        store_row(static_cast<Word*>(a.histories[0]) + at, rows[i], D - u, vectors);
      }
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const int64_t at = ys_at + int64_t(j) * wide + 8 * i;
        if (ALONE && own[i][j]) static_cast<Word*>(a.histories[0])[at] = ys[i][j];
#pragma unroll
        for (int s = 1; s < STATES; ++s) {
          if (pick<STATES>(a.histories, s) && own[i][j])
            static_cast<float*>(pick<STATES>(a.histories, s))[at] = others[i][j][s - 1];
        }
        if (SAVED > 0 && a.gates && own[i][j]) {
          SavedWord* gates = static_cast<SavedWord*>(a.gates) + gates_at + int64_t(j) * SAVED * H + 8 * i;
#pragma unroll
          for (int v = 0; v < SAVED; ++v) {
            const uint32_t word = words[i][j][IN_PAIRS ? v / 2 : v];
            gates[v * int64_t(H)] = static_cast<SavedWord>(IN_PAIRS ? word >> v % 2 * 16 : word);
          }
        }
      }
    }
    if (ALONE) {
      if (SAVED > 0) gates_at = keep(gates_at) + row_step * SAVED;
      ys_at = keep(ys_at) + ys_step;
    }
  };

#pragma unroll 1
  for (int step = 0; step < a.T; ++step) {
    const int t = t_first + dt * step, now = step & 1, then = now ^ 1;
    const bool last = step == a.T - 1;
    look_ahead<P>(rest, ahead);
    if constexpr (P::BLOCKS > 1) {
      if (device::thread() < P::ARRIVALS && !last) {
        device::mbarrier_expect(arrivals + then * P::ARRIVALS + device::thread(), P::STATE_BYTES / P::ARRIVALS);
      }
    }
    // Where it sends to, which is found before the wait.
    const int to =
        device::hide(static_cast<int>(P::BARRIER_BYTES + state_word(sent_unit, sent_column)) + then * P::STATE_BYTES);
    const int arrival =
        device::hide((then * P::ARRIVALS + me.rank * P::ARRIVALS / P::BLOCKS) * static_cast<int>(sizeof(uint64_t)));
    float sums[P::M_TILES][4];
    Values<U_GATES> gh[ITEMS][COLUMNS];
    auto meanwhile = [&] {
      if (!ALONE) return;
      device::schedule_fence(a.B);  // the first products come first
      load_step(t + dt, step + 2 >= a.T);
      if (step > 0) publish(t - dt);
      device::schedule_fence(a.B);  // the loads stay here, a step ahead of their use
    };
    multiply<P>(me, w, rest, state + now * P::STATE_BYTES, arrivals + now * P::ARRIVALS, step >> 1 & 1, sums, ahead, b,
                meanwhile);
    reduce<P>(me, sums, partial + now * P::PARTIAL_BYTES, gh);
    if (!ALONE) take_step(t, last);

#pragma unroll
    for (int i = 0; i < ITEMS; ++i) {
      float h[COLUMNS];
#pragma unroll
      for (int j = 0; j < COLUMNS; ++j) {
        const bool lives = live & own[i][j];
        Values<Cell::PREACTIVATIONS> pre;
        Values<STATES> after;
        Values<SAVED> saved;
#pragma unroll
        for (int gate = 0; gate < U_GATES; ++gate) {
          if (!Cell::ADDS) gh[i][j][gate] += bias[i][gate];
        }
        Cell::preactivations(x[i][j], gh[i][j], pre);
        Cell::template step<Element>(pre, states[i][j], parameters[i], inputs[i][j], after, saved);
        keep_finite<Cell>(lives, saved);
#pragma unroll
        for (int s = 0; s < STATES; ++s) after[s] = lives ? after[s] : states[i][j][s];
        h[j] = after[0];
#pragma unroll
        for (int s = 1; s < STATES; ++s) others[i][j][s - 1] = after[s];
#pragma unroll
        for (int s = 0; s < STATES; ++s) states[i][j][s] = cuts & own[i][j] ? 0.f : after[s];
        if (P::BLOCKS == 1) {
          const int k = me.item_unit(i) + me.g;
          char* to = state + then * P::STATE_BYTES + state_word(k / P::WORD_UNITS * P::WORD_UNITS, column + j);
          store(to + k % P::WORD_UNITS * sizeof(Word), Element::operand(Element::from_float(states[i][j][0])));
          ys[i][j] = lives ? Element::from_float(after[0]) : Word(0);
        }
#pragma unroll
        for (int v = 0; v < SAVED; ++v) {
          if (has(Cell::UNBOUNDED, v)) saved[v] = Element::Saved::finite(saved[v]);
        }
#pragma unroll
        for (int v = 0; v < SAVED_WORDS; ++v) {
          if constexpr (IN_PAIRS) {
            words[i][j][v] = Element::Saved::pack(saved[2 * v], 2 * v + 1 < SAVED ? saved[2 * v + 1] : 0.f);
          } else {
            words[i][j][v] = Element::Saved::from_float(saved[v]);
          }
        }
      }
      // What is sent comes first: all blocks wait for it.
      if constexpr (P::BLOCKS > 1) {
        rows[i] = gather_units<P>(me, h);
        word4 next = Element::operand(rows[i]);
        if (cuts >> sent_column & 1) next = {};
        if (!last) send<P>(me, next, receivers, to + 8 * i * P::ROWS * static_cast<int>(sizeof(Word)), arrival);
        if (!(live >> sent_column & 1)) rows[i] = {};
      }
    }
    if (P::BLOCKS == 1) device::block_barrier();
    if (ALONE) {
      look_at_state(then);
      device::schedule_fence(a.B);
      take_step(t + dt, step + 2 >= a.T);
    } else {
      device::schedule_fence(a.B);  // what is sent comes first
      load_step(t + dt, step + 2 >= a.T);
      publish(t);
    }
  }
  if (ALONE && a.T > 0) publish(a.T - 1);

#pragma unroll
  for (int i = 0; i < ITEMS; ++i) {
#pragma unroll
    for (int j = 0; j < COLUMNS; ++j) {
      if (!inside(i, j)) continue;
#pragma unroll
      for (int s = 0; s < STATES; ++s) {
        Word* to = static_cast<Word*>(pick<STATES>(a.finals, s)) + (state_row + column + j) * H + head_unit + 8 * i;
        *to = Element::from_float(states[i][j][s]);
      }
    }
  }
}

}  // namespace fastrnn::cluster
