// The forward recurrence, way 3: teams of blocks, each with the weights of one head and direction, compute tiles of the
// batch, in every step one after the other.
//
// A block multiplies its units' rows of w_hh by the state of the whole head, which it reads from `ys`, where each of
// the team's blocks stores its slice of it. Nothing else is exchanged: no fence, no counter (exchange.cuh). The weights
// stay in registers and shared memory, as the first operand of the product: gate rows are its M, the sequences its N,
// and the block's warps divide the sum. While a tile's state is on its way, the block computes the next tile.
#pragma once

#include "../own.cuh"
#include "product.cuh"

namespace fastrnn::grid {

// What a block has of its job: the weights, and the bias and the parameters of the thread's item.
template <class P>
struct ForwardWeights {
  word4 w[P::REGISTER_TILES];
  Values<P::M_GATES> bias;
  Values<P::Cell::PARAMETERS> parameters;

  DEVICE void load(const ForwardArguments& a, const Lane<P>& me, const Memory<P>& memory, const Job& job) {
    using Word = typename P::Word;
    const int D = a.H / a.heads;
    const Word* w_hh = static_cast<const Word*>(job.direction ? a.w_hh[1] : a.w_hh[0]);
    w_hh += int64_t(job.head) * P::M_GATES * D * D;
    load_weights<P>(me, memory, w, [&](int gate, int k) {
      const Word* from = w_hh + int64_t(gate) * D * D + k;
      return
          [=](int unit) { return load_vector(from + int64_t(unit) * D, 1, unit < D ? D - k : 0, D % P::VECTOR == 0); };
    });
    const Word* b_hh = static_cast<const Word*>(job.direction ? a.b_hh[1] : a.b_hh[0]);
#pragma unroll
    for (int gate = 0; gate < P::M_GATES; ++gate) {
      const bool none = P::Cell::ADDS || !b_hh || me.unit >= D;
      bias[gate] = none ? 0.f : P::Element::to_float(b_hh[int64_t(gate) * a.H + job.head * D + me.unit]);
    }
    load_parameters<P>(a, job.direction, job.head * D + me.unit, me.unit < D, parameters);
  }
};

// All steps of a chunk. `now`: which buffer the sums are in.
template <class P>
DEVICE void run_chunk(const ForwardArguments& a, const Lane<P>& me, const Memory<P>& memory, const Job& job,
                      const Chunk& chunk, const ForwardWeights<P>& weights, int& now) {
  using Cell = typename P::Cell;
  using Element = typename P::Element;
  using Saved = typename Element::Saved;
  using Word = typename P::Word;
  constexpr int X_GATES = Cell::X_GATES, U_GATES = Cell::U_GATES, STATES = Cell::STATES, SAVED = Cell::SAVED;
  constexpr int INPUTS = Cell::INPUTS;

  const bool backwards = job.backwards;
  auto inside = [&](int tile) { return me.unit < job.D && chunk.first + tile * P::ROWS + me.row < a.B; };
  auto state_at = [&](int tile) {
    return (int64_t(job.direction) * a.B + chunk.first + device::hide(tile) * P::ROWS + me.row) * a.H +
           job.unit(me.unit);
  };

  memory.set_lengths(a, chunk);
#pragma unroll 1
  for (int tile = 0; me.finishes && tile < chunk.tiles; ++tile) {
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      const Word* from = static_cast<const Word*>(pick<STATES>(a.states0, s));
      memory.number(tile, s) = inside(tile) ? Element::to_float(from[state_at(tile)]) : 0.f;
    }
  }

  const int dt = backwards ? -1 : 1, t_first = backwards ? a.T - 1 : 0;
  auto entry = [&](int t) { return masks::entry(t, backwards); };
  uint8_t read_reset = load_reset(a, entry(t_first), chunk.first + me.g);
#pragma unroll 1
  for (int step = 0; step < a.T; ++step) {
    const int t = t_first + dt * step;
#pragma unroll 1
    for (int tile = 0; tile < chunk.tiles; ++tile) {
      const int first = chunk.first + tile * P::ROWS;
      const int H = device::hide(a.H), direction = device::hide(job.direction), wide = a.directions * H;
      const int head_unit = job.unit(me.unit);

      // What is finished from, ahead of the wait for the other blocks.
      Word gx[X_GATES] = {};
      Word fed[ROOM<INPUTS>] = {};
      uint8_t reset = 0;
      if (me.finishes && inside(tile)) {
        const int64_t row = (int64_t(direction) * a.T + t) * a.B + first + me.row;
#pragma unroll
        for (int gate = 0; gate < X_GATES; ++gate)
          gx[gate] = static_cast<const Word*>(a.gx)[(row * X_GATES + gate) * H + head_unit];
        load_inputs<P>(a, row * H + head_unit, true, fed);
        reset = load_reset(a, entry(t), first + me.row);
      }

      // The state that enters the step, of the sequence whose row this lane reads. Of a dead step it is of no
      // consequence. The next one's reset is loaded ahead.
      const int sequence = first + me.g, length = memory.length(tile, me.g);
      const bool starts = masks::starts(step == 0, t, length, backwards);
      const bool is_cut = masks::cut(read_reset, entry(t), length);
      const bool none = sequence >= a.B || is_cut || (!backwards && !masks::live(t, length));
      const int64_t h0_row = (int64_t(direction) * a.B + sequence) * H;
      const int64_t ys_row = (int64_t(t - dt) * a.B + sequence) * wide + direction * H;
      const Word* from =
          starts ? static_cast<const Word*>(a.states0[0]) + h0_row : static_cast<const Word*>(a.histories[0]) + ys_row;
      const int unit = me.read_unit(0);
      const Row<Word> row{from + job.unit(unit), 0, none ? 0 : job.D - unit, !starts && !none, job.vectors};
      const bool last = tile == chunk.tiles - 1;
      read_reset = load_reset(a, entry(last ? t + dt : t), (last ? chunk.first : first + P::ROWS) + me.g);

      float sums[P::M_TILES][4];
      multiply<P>(row, memory, weights.w, sums);
      store_sums<P>(me, sums, memory.sums + now * P::SUM_BYTES);
      device::block_barrier();
      if (me.finishes) {
        const int steps = memory.length(tile, me.row);
        const bool lives = masks::live(t, steps), cut_here = masks::cut(reset, entry(t), steps);
        Values<U_GATES> gh;
        Values<X_GATES> x;
        Values<Cell::PREACTIVATIONS> pre;
        Values<STATES> before, after;
        Values<SAVED> saved;
        Values<INPUTS> inputs;
        add_up<P>(me, memory.sums + now * P::SUM_BYTES, gh);
#pragma unroll
        for (int gate = 0; gate < X_GATES; ++gate) x[gate] = lives ? Element::to_float(gx[gate]) : 0.f;
#pragma unroll
        for (int gate = 0; gate < U_GATES; ++gate) {
          if (!Cell::ADDS) gh[gate] += weights.bias[gate];
        }
#pragma unroll
        for (int s = 0; s < STATES; ++s) before[s] = cut_here ? 0.f : memory.number(tile, s);
        take_inputs<P>(fed, lives, inputs);
        Cell::preactivations(x, gh, pre);
        Cell::template step<Element>(pre, before, weights.parameters, inputs, after, saved);
        keep_finite<Cell>(lives, saved);
#pragma unroll
        for (int s = 0; s < STATES; ++s) after[s] = lives ? after[s] : before[s];

        // What all blocks wait for comes first.
        const int64_t at = int64_t(t) * a.B + first + me.row, ys_at = at * wide + direction * H + head_unit;
        const Word y = lives ? Element::from_float(after[0]) : Word(0);
        publish(static_cast<Word*>(a.histories[0]) + ys_at, y, inside(tile), job.vectors);
#pragma unroll
        for (int s = 0; s < STATES; ++s) memory.number(tile, s) = after[s];
#pragma unroll
        for (int s = 1; s < STATES; ++s) {
          if (pick<STATES>(a.histories, s) && inside(tile))
            static_cast<float*>(pick<STATES>(a.histories, s))[ys_at] = after[s];
        }
        if (SAVED > 0 && a.gates && inside(tile)) {
          const int64_t row_of_gates = int64_t(direction) * a.T * a.B + at;
          auto* gates = static_cast<typename Saved::Word*>(a.gates) + row_of_gates * SAVED * H + head_unit;
#pragma unroll
          for (int v = 0; v < SAVED; ++v) {
            const float kept = has(Cell::UNBOUNDED, v) ? Saved::finite(saved[v]) : saved[v];
            gates[v * int64_t(H)] = Saved::from_float(kept);
          }
        }
      }
      now ^= 1;
    }
  }

#pragma unroll 1
  for (int tile = 0; me.finishes && tile < chunk.tiles; ++tile) {
    if (!inside(tile)) continue;
#pragma unroll
    for (int s = 0; s < STATES; ++s) {
      static_cast<Word*>(pick<STATES>(a.finals, s))[state_at(tile)] = Element::from_float(memory.number(tile, s));
    }
  }
}

template <class P>
KERNEL(P::THREADS)
forward_kernel(ForwardArguments a, Teams teams) {
  const Lane<P> me(teams);
  const Memory<P> memory(teams, me, a.H / a.heads);
  ForwardWeights<P> weights = {};
  int now = 0;
#pragma unroll 1
  for (uint64_t number = first_chunk<P>(a, teams, 0); number < first_chunk<P>(a, teams, 1); ++number) {
    const uint32_t chunks = chunks_of_job<P>(a, teams);
    const int of_job = static_cast<int>(number % chunks);
    const Job job = Job::of<P>(a, static_cast<int>(number / chunks));
    if (of_job == 0 || number == first_chunk<P>(a, teams, 0)) weights.load(a, me, memory, job);
    run_chunk<P>(a, me, memory, job, Chunk::of<P>(a, teams, of_job), weights, now);
  }
}

}  // namespace fastrnn::grid
