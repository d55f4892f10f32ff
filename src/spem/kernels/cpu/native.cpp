// The passes over feature maps that attention and its gradient need, for CPUs.
//
// A feature map holds l positions for each of n·c channels: in NCHW the positions of a channel are
// adjacent, in NHWC the channels of a position. Every pass reads its feature maps once, in the order
// of memory, and shares the images among threads. `autograd.py` describes the four functions at the
// end (`PassesBackend.run_…`). "map" in a name stands for one channel of one image.

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <limits>
#include <type_traits>
#include <vector>

#define INLINE inline __attribute__((always_inline))

namespace {

#if defined(__AVX512F__)
constexpr int REGISTER = 64;
#elif defined(__AVX__)
constexpr int REGISTER = 32;
#else
constexpr int REGISTER = 16;
#endif
constexpr int UNROLLED = 4;        // registers of channels or positions that are computed together
constexpr int64_t TILE = 1 << 13;  // bytes of NHWC whose sums are kept in registers
constexpr int64_t BLOCK = 64;      // positions that are summed before their sum is added

struct BFloat16 {
  uint16_t bits;
};

// The type in which the numbers of a channel are computed; it counts their positions, too.
template <class T> struct WideOf { using type = T; };
template <> struct WideOf<BFloat16> { using type = float; };
template <class T> using Wide = typename WideOf<T>::type;

template <class A, int W> struct VectorOf {
  typedef A type __attribute__((vector_size(W * sizeof(A))));
};
template <class A, int W> using Vector = typename VectorOf<A, W>::type;
template <class A> constexpr int LANES = REGISTER / sizeof(A);

template <int W, int B> struct Size {
  static constexpr int lanes = W, vectors = B;
};

template <class A, int W> inline Vector<A, W> splat(A value) { return Vector<A, W>{} + value; }

template <class A, int W> inline Vector<A, W> count_up() {
  Vector<A, W> lanes;
  for (int i = 0; i < W; i++) lanes[i] = i;
  return lanes;
}

template <int W, class T> inline Vector<Wide<T>, W> load(const T* from) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    Vector<uint16_t, W> raw;
    std::memcpy(&raw, from, sizeof raw);
    Vector<uint32_t, W> bits = __builtin_convertvector(raw, Vector<uint32_t, W>) << 16;
    return (Vector<float, W>)bits;
  } else {
    Vector<T, W> value;
    std::memcpy(&value, from, sizeof value);
    return value;
  }
}

template <int W, class T> inline void store(T* to, Vector<Wide<T>, W> value) {
  if constexpr (std::is_same_v<T, BFloat16>) {
    // To the nearest, ties to even; a NaN stays one.
    Vector<uint32_t, W> bits = (Vector<uint32_t, W>)value;
    Vector<uint32_t, W> rounded = (bits + (0x7fffu + ((bits >> 16) & 1u))) >> 16;
    Vector<uint32_t, W> quiet = (bits >> 16) | 0x40u;
    rounded = value == value ? rounded : quiet;
    Vector<uint16_t, W> raw = __builtin_convertvector(rounded, Vector<uint16_t, W>);
    std::memcpy(to, &raw, sizeof raw);
  } else {
    std::memcpy(to, &value, sizeof value);
  }
}

template <class A, int W> inline A total(Vector<A, W> value) {
  if constexpr (W == 1) {
    return value[0];
  } else {
    Vector<A, W / 2> half[2];
    std::memcpy(half, &value, sizeof half);
    return total<A, W / 2>(half[0] + half[1]);
  }
}

template <class A, int TERMS> struct Taylor {
  A of[TERMS + 1] = {};  // 1 / k!
  constexpr Taylor() {
    double factorial = 1;
    for (int k = 0; k <= TERMS; factorial *= ++k) of[k] = A(1 / factorial);
  }
};

// σ(x) = 1 / (1 + exp(−x)): with −x = n·ln 2 + r, exp(−x) is 2ⁿ times Taylor's polynomial of r, whose
// rest is below half an ulp. ln 2 is given in two parts, the first of which times n is exact.
template <int W, class A> INLINE Vector<A, W> logistic(Vector<A, W> x) {
  constexpr bool SINGLE = sizeof(A) == 4;
  using Int = std::conditional_t<SINGLE, int32_t, int64_t>;
  constexpr A high = SINGLE ? 0.693359375 : 0.693145751953125;
  constexpr A low = SINGLE ? -2.12194440054690583e-4 : 1.42860682030941723212e-6;
  constexpr A shift = SINGLE ? 12582912.0 : 6755399441055744.0;  // brings units to the last bit
  constexpr A most = SINGLE ? 87 : 700;
  constexpr int TERMS = SINGLE ? 7 : 13, BITS = SINGLE ? 23 : 52;
  constexpr Taylor<A, TERMS> taylor;
  const Vector<A, W> one = splat<A, W>(1);
  x = x > most ? splat<A, W>(most) : x;
  x = x < -most ? splat<A, W>(-most) : x;
  const Vector<A, W> shifted = shift - x * A(1.44269504088896340736), n = shifted - shift;
  const Vector<A, W> r = (-x - n * high) - n * low;
  Vector<A, W> sum = splat<A, W>(taylor.of[TERMS]);
#pragma GCC unroll 16
  for (int k = TERMS - 1; k >= 0; k--) sum = taylor.of[k] + r * sum;
  Vector<Int, W> bits, power = (Vector<Int, W>)shifted << BITS;  // 2ⁿ = the exponent of 1, plus n
  std::memcpy(&bits, &sum, sizeof bits);
  bits += power;
  std::memcpy(&sum, &bits, sizeof sum);
  return one / (one + (x == x ? sum : x));
}

// The coefficients of a recalibration (scale·x + shift)·σ(slope·x + offset + square·(x − centre)²).
// NUMBER says which there are: the first 2 without a sigmoid, the first 4 without a square, or all.
enum { SCALE, SHIFT, SLOPE, OFFSET, SQUARE, CENTRE, ALL };

template <class A> struct Coefficients {
  const A* of[ALL];  // null is 0
  bool per_image;

  // Writes the coefficients of a channel, `stride` apart.
  template <int NUMBER>
  void write(int64_t channels, int64_t image, int64_t c, A* to, int64_t stride) const {
    int64_t from = per_image ? image * channels + c : c;
    for (int i = 0; i < NUMBER; i++) to[i * stride] = of[i] ? of[i][from] : A(0);
  }
};

// `centred` is x − centre, or x where there is no square.
template <int W, int NUMBER, class A> INLINE Vector<A, W> centre(Vector<A, W> x, const Vector<A, W> k[]) {
  if constexpr (NUMBER > SQUARE) return x - k[CENTRE];
  return x;
}

template <int W, int NUMBER, class A>
INLINE Vector<A, W> multiplier(Vector<A, W> x, Vector<A, W> centred, const Vector<A, W> k[]) {
  Vector<A, W> logits = k[SLOPE] * x + k[OFFSET];
  if constexpr (NUMBER > SQUARE) logits += k[SQUARE] * centred * centred;
  return logistic<W, A>(logits);
}

// The largest number seen and its first position, for every lane.
template <class A, int W> struct Largest {
  Vector<A, W> value = splat<A, W>(-std::numeric_limits<A>::infinity());
  Vector<A, W> at = {};

  inline void see(Vector<A, W> x, Vector<A, W> position) {
    at = x > value ? position : at;
    value = x > value ? x : value;
  }

  inline void merge(const Largest& other) {
    at = other.value == value ? (other.at < at ? other.at : at) : at;
    at = other.value > value ? other.at : at;
    value = other.value > value ? other.value : value;
  }

  inline Largest<A, 1> all() const {
    if constexpr (W == 1) {
      return *this;
    } else {
      Largest<A, W / 2> half[2];
      for (int i = 0; i < 2; i++) {
        constexpr size_t bytes = sizeof half[i].value;
        std::memcpy(&half[i].value, (const char*)&value + i * bytes, bytes);
        std::memcpy(&half[i].at, (const char*)&at + i * bytes, bytes);
      }
      half[0].merge(half[1]);
      return half[0].all();
    }
  }
};

// Calls f(size, first) for blocks that cover [first, last), wide ones as long as they fit.
template <class A, class F> inline void over(int64_t first, int64_t last, F f) {
  constexpr int W = LANES<A>;
  for (; first + W * UNROLLED <= last; first += W * UNROLLED) f(Size<W, UNROLLED>{}, first);
  for (; first + W <= last; first += W) f(Size<W, 1>{}, first);
  if constexpr (W > 4)
    for (; first + 4 <= last; first += 4) f(Size<4, 1>{}, first);
  for (; first < last; first++) f(Size<1, 1>{}, first);
}

struct Shape {
  int64_t n, c, l;
  bool last;  // NHWC
  int threads;

  template <class T> int64_t positions_of_a_tile() const {
    return std::clamp<int64_t>(TILE / (c * sizeof(T)), 16, 32);
  }
};

// Calls f(image, first, last) for all images, in parallel, each cut into parts of [0, size) where
// the images alone cannot occupy the threads. Passes that reduce go through the images from the
// last to the first and passes that write from the first to the last: each begins with what the
// one before it left in the caches.
template <class F> void share(const Shape& s, bool backwards, int64_t size, int64_t smallest, F f) {
  int64_t parts = 1;
  if (s.n < 4 * s.threads)
    parts = std::clamp<int64_t>(size / smallest, 1, (4 * s.threads + s.n - 1) / s.n);
  const int64_t tasks = s.n * parts;
#pragma omp parallel num_threads(s.threads)
  {
    const int64_t thread = omp_get_thread_num(), threads = omp_get_num_threads();
    const int64_t begin = tasks * thread / threads, end = tasks * (thread + 1) / threads;
    for (int64_t i = begin; i < end; i++) {
      const int64_t task = backwards ? begin + end - 1 - i : i, part = task % parts;
      f(task / parts, size * part / parts, size * (part + 1) / parts);
    }
  }
}

template <class A, int ROWS> struct Table {
  std::vector<A> values;
  int64_t width;
  Table(int64_t width) : values(ROWS * width), width(width) {}
  A* operator[](int row) { return values.data() + row * width; }
};

// ---- pooling ----

template <class T> struct Pooled {
  using A = Wide<T>;
  A *mean, *var, *max, *min, *argmax, *argmin, *first;
};

// Of a channel with numbers that are not finite, whose shifted sums mean nothing.
template <class T, bool VAR, bool EXTREMA>
void pool_carefully(const T* x, int64_t stride, int64_t l, int64_t to, const Pooled<T>& out) {
  using A = Wide<T>;
  A sum = 0, squares = 0;
  Largest<A, 1> max, min;
  bool poisoned = false;
  for (int64_t p = 0; p < l; p++) {
    A v = load<1>(x + p * stride)[0];
    sum += v;
    if (!EXTREMA || poisoned) continue;
    poisoned = v != v;
    if (poisoned) {
      max.value = min.value = splat<A, 1>(v);
      max.at = min.at = splat<A, 1>(p);
    } else {
      max.see(splat<A, 1>(v), splat<A, 1>(p));
      min.see(splat<A, 1>(-v), splat<A, 1>(p));
    }
  }
  if constexpr (EXTREMA) out.first[to] = load<1>(x)[0];
  A mean = out.mean[to] = sum / l;
  if constexpr (VAR) {
    for (int64_t p = 0; p < l; p++) {
      A centred = load<1>(x + p * stride)[0] - mean;
      squares += centred * centred;
    }
    out.var[to] = squares / l;
  }
  if constexpr (EXTREMA) {
    out.max[to] = max.value[0], out.argmax[to] = max.at[0];
    out.min[to] = -min.value[0], out.argmin[to] = min.at[0];
  }
}

template <bool VAR, class A>
inline bool finish_moments(A shift, A sum, A squares, int64_t l, A* mean, A* var) {
  A rest = sum / l;
  *mean = rest + shift;
  if constexpr (VAR) *var = std::max<A>(squares / l - rest * rest, 0);
  return std::isfinite(sum) && (!VAR || std::isfinite(squares));
}

// Mean and variance are those of the deviation from the mean of the first sixteenth of the channel:
// so the squares cannot lose more than four bits, whatever the mean, since that of k of l numbers
// is at most √(l/k) deviations away from the mean of all.
template <class T, bool VAR, bool EXTREMA> struct Pool {
  using A = Wide<T>;
  const T* x;
  Pooled<T> out;

  void positions_last(const Shape& s, int64_t map) const {
    constexpr int W = LANES<A>;
    const T* from = x + map * s.l;
    A shift = 0;
    if constexpr (VAR) {
      int64_t first = (s.l + 15) / 16;
      over<A>(0, first, [&](auto size, int64_t p) {
        constexpr int B = decltype(size)::vectors, V = decltype(size)::lanes;
        for (int b = 0; b < B; b++) shift += total<A, V>(load<V>(from + p + b * V));
      });
      shift /= first;
    }
    Vector<A, W> sum[UNROLLED] = {}, squares[UNROLLED] = {};
    Largest<A, W> max[UNROLLED], min[UNROLLED];
    A more = 0, more_squares = 0;
    Largest<A, 1> more_max, more_min;
    const Vector<A, W> lanes = count_up<A, W>();
    over<A>(0, s.l, [&](auto size, int64_t p) {
      constexpr int B = decltype(size)::vectors, V = decltype(size)::lanes;
      if constexpr (V == W) {
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) {
          Vector<A, W> v = load<W>(from + p + b * W), centred = v - shift;
          sum[b] += centred;
          if constexpr (VAR) squares[b] += centred * centred;
          if constexpr (EXTREMA) {
            max[b].see(v, lanes + A(p + b * W));
            min[b].see(-v, lanes + A(p + b * W));
          }
        }
      } else {
        for (int i = 0; i < V; i++) {
          Vector<A, 1> v = load<1>(from + p + i), centred = v - shift;
          more += centred[0];
          if constexpr (VAR) more_squares += centred[0] * centred[0];
          if constexpr (EXTREMA) {
            more_max.see(v, splat<A, 1>(p + i));
            more_min.see(-v, splat<A, 1>(p + i));
          }
        }
      }
    });
    for (int b = 1; b < UNROLLED; b++) {
      sum[0] += sum[b], squares[0] += squares[b];
      if constexpr (EXTREMA) max[0].merge(max[b]), min[0].merge(min[b]);
    }
    more += total<A, W>(sum[0]), more_squares += total<A, W>(squares[0]);
    if (!finish_moments<VAR>(shift, more, more_squares, s.l, out.mean + map, out.var + map))
      return pool_carefully<T, VAR, EXTREMA>(from, 1, s.l, map, out);
    if constexpr (EXTREMA) {
      more_max.merge(max[0].all()), more_min.merge(min[0].all());
      out.max[map] = more_max.value[0], out.argmax[map] = more_max.at[0];
      out.min[map] = -more_min.value[0], out.argmin[map] = more_min.at[0];
      out.first[map] = load<1>(from)[0];
    }
  }

  void channels_last(const Shape& s, int64_t image, int64_t c0, int64_t c1) const {
    constexpr A least = -std::numeric_limits<A>::infinity();
    const T* from = x + image * s.l * s.c;
    int64_t tile = s.positions_of_a_tile<T>(), first = (s.l + 15) / 16;
    Table<A, 7> state(s.c);
    A *shift = state[0], *sum = state[1], *squares = state[2], *max = state[3], *min = state[4];
    A *argmax = state[5], *argmin = state[6];
    std::fill(max, max + 2 * s.c, least);
    if constexpr (VAR) {
      for (int64_t p = 0; p < first; p += tile)
        over<A>(c0, c1, [&](auto size, int64_t c) {
          constexpr int B = decltype(size)::vectors, W = decltype(size)::lanes;
          Vector<A, W> part[B] = {};
          for (int64_t q = p; q < std::min(p + tile, first); q++)
            for (int b = 0; b < B; b++) part[b] += load<W>(from + q * s.c + c + b * W);
          for (int b = 0; b < B; b++)
            store<W>(shift + c + b * W, load<W>(shift + c + b * W) + part[b] / A(first));
        });
    }
    for (int64_t p = 0; p < s.l; p += tile)
      over<A>(c0, c1, [&](auto size, int64_t c) {
        constexpr int B = decltype(size)::vectors, W = decltype(size)::lanes;
        Vector<A, W> base[B], part[B] = {}, part_squares[B] = {};
        Largest<A, W> largest[B], smallest[B];
        for (int b = 0; b < B; b++) {
          base[b] = load<W>(shift + c + b * W);
          if constexpr (EXTREMA) {
            largest[b] = {load<W>(max + c + b * W), load<W>(argmax + c + b * W)};
            smallest[b] = {load<W>(min + c + b * W), load<W>(argmin + c + b * W)};
          }
        }
        for (int64_t q = p; q < std::min(p + tile, s.l); q++) {
#pragma GCC unroll 4
          for (int b = 0; b < B; b++) {
            Vector<A, W> v = load<W>(from + q * s.c + c + b * W), centred = v - base[b];
            part[b] += centred;
            if constexpr (VAR) part_squares[b] += centred * centred;
            if constexpr (EXTREMA) {
              largest[b].see(v, splat<A, W>(q));
              smallest[b].see(-v, splat<A, W>(q));
            }
          }
        }
        for (int b = 0; b < B; b++) {
          store<W>(sum + c + b * W, load<W>(sum + c + b * W) + part[b]);
          store<W>(squares + c + b * W, load<W>(squares + c + b * W) + part_squares[b]);
          if constexpr (EXTREMA) {
            store<W>(max + c + b * W, largest[b].value);
            store<W>(argmax + c + b * W, largest[b].at);
            store<W>(min + c + b * W, smallest[b].value);
            store<W>(argmin + c + b * W, smallest[b].at);
          }
        }
      });
    for (int64_t c = c0; c < c1; c++) {
      int64_t to = image * s.c + c;
      if (!finish_moments<VAR>(shift[c], sum[c], squares[c], s.l, out.mean + to, out.var + to)) {
        pool_carefully<T, VAR, EXTREMA>(from + c, s.c, s.l, to, out);
      } else if constexpr (EXTREMA) {
        out.max[to] = max[c], out.argmax[to] = argmax[c];
        out.min[to] = -min[c], out.argmin[to] = argmin[c];
        out.first[to] = load<1>(from + c)[0];
      }
    }
  }
};

// ---- the gradients of the coefficients ----

template <class T, bool RELU, bool WRITE, int NUMBER> struct Sums {
  using A = Wide<T>;
  static constexpr bool GATED = NUMBER > 2, SQUARES = NUMBER > SQUARE;
  // Of d·x·σ, d·σ and, with u = d·(scale·x + shift)·σ′, of u·x, u, u·(x − centre)² and
  // u·(x − centre). Without a sigmoid of d·x and d.
  static constexpr int K = GATED ? NUMBER : 1;
  const T *grad, *result, *x;
  T *d;
  Coefficients<A> given;
  A* gradients;  // of the coefficients, each (n, c)

  template <int W>
  INLINE void add(int64_t at, Vector<A, W> sums[], const Vector<A, W> k[]) const {
    Vector<A, W> g = load<W>(grad + at);
    if constexpr (RELU) g = load<W>(result + at) <= 0 ? splat<A, W>(0) : g;
    if constexpr (WRITE) store<W>(d + at, g);
    const Vector<A, W> v = load<W>(x + at);
    if constexpr (GATED) {
      const Vector<A, W> centred = centre<W, NUMBER, A>(v, k);
      const Vector<A, W> weight = multiplier<W, NUMBER, A>(v, centred, k);
      g *= weight;
      const Vector<A, W> inner = g * (v * k[SCALE] + k[SHIFT]), u = inner - inner * weight;
      sums[SLOPE] += u * v;
      sums[OFFSET] += u;
      if constexpr (SQUARES) {
        const Vector<A, W> distance = u * centred;
        sums[SQUARE] += distance * centred;
        sums[CENTRE] += distance;
      }
    }
    sums[SCALE] += g * v;
    sums[SHIFT] += g;
  }

  void read(const Shape& s, int64_t image, int64_t c, A* k, int64_t stride) const {
    if constexpr (GATED) given.template write<NUMBER>(s.c, image, c, k, stride);
  }

  // Writes the gradients of the coefficients k of a channel, `to` apart, from its sums.
  void finish(const Shape& s, int64_t map, const A* sums, int64_t apart, const A* k,
              int64_t stride) const {
    const int64_t step = s.n * s.c;
    for (int i = 0; i < NUMBER; i++) gradients[map + i * step] = sums[i * apart];
    if constexpr (SQUARES) gradients[map + CENTRE * step] *= -2 * k[SQUARE * stride];
  }

  void positions_last(const Shape& s, int64_t map) const {
    constexpr int W = LANES<A>;
    const Sums own = *this;
    A k[K] = {}, sums[NUMBER];
    own.read(s, map / s.c, map % s.c, k, 1);
    Vector<A, W> wide[K], part[UNROLLED][NUMBER] = {};
    Vector<A, 1> narrow[K], more[NUMBER] = {};
    for (int i = 0; i < K; i++) wide[i] = splat<A, W>(k[i]), narrow[i] = splat<A, 1>(k[i]);
    over<A>(map * s.l, (map + 1) * s.l, [&](auto size, int64_t at) {
      constexpr int B = decltype(size)::vectors, V = decltype(size)::lanes;
      if constexpr (V == W) {
#pragma GCC unroll 4
        for (int b = 0; b < B; b++) own.template add<W>(at + b * W, part[b], wide);
      } else {
        for (int i = 0; i < V; i++) own.template add<1>(at + i, more, narrow);
      }
    });
    for (int i = 0; i < NUMBER; i++) {
      for (int b = 1; b < UNROLLED; b++) part[0][i] += part[b][i];
      sums[i] = more[i][0] + total<A, W>(part[0][i]);
    }
    own.finish(s, map, sums, 1, k, 1);
  }

  void channels_last(const Shape& s, int64_t image, int64_t c0, int64_t c1) const {
    const Sums own = *this;
    // Few positions of a channel block before the next block: a CPU prefetches three feature maps
    // at once only where they are read nearly in order.
    const int64_t tile = s.c > UNROLLED * LANES<A> ? 4 : s.positions_of_a_tile<T>();
    const int64_t first = image * s.l * s.c;
    Table<A, 2 * NUMBER + K> state(s.c);
    A *const totals = state[0], *const partial = state[NUMBER], *const table = state[2 * NUMBER];
    for (int64_t c = c0; c < c1; c++) own.read(s, image, c, table + c, s.c);
    for (int64_t block = 0; block < s.l; block += BLOCK) {
      const int64_t end = std::min(block + BLOCK, s.l);
      for (int64_t p = block; p < end; p += tile)
        over<A>(c0, c1, [&](auto size, int64_t c) {
          constexpr int B = decltype(size)::vectors, W = decltype(size)::lanes;
          Vector<A, W> part[B][NUMBER], k[B][K];
          for (int b = 0; b < B; b++) {
            for (int i = 0; i < NUMBER; i++) part[b][i] = load<W>(partial + i * s.c + c + b * W);
            if constexpr (GATED)
              for (int i = 0; i < K; i++) k[b][i] = load<W>(table + i * s.c + c + b * W);
          }
          for (int64_t q = p; q < std::min(p + tile, end); q++) {
#pragma GCC unroll 4
            for (int b = 0; b < B; b++)
              own.template add<W>(first + q * s.c + c + b * W, part[b], k[b]);
          }
          for (int b = 0; b < B; b++)
            for (int i = 0; i < NUMBER; i++) store<W>(partial + i * s.c + c + b * W, part[b][i]);
        });
      for (int i = 0; i < NUMBER; i++)
        for (int64_t c = i * s.c + c0; c < i * s.c + c1; c++) totals[c] += partial[c], partial[c] = 0;
    }
    for (int64_t c = c0; c < c1; c++)
      own.finish(s, image * s.c + c, totals + c, s.c, table + c, s.c);
  }
};

template <class Reduction> void reduce(const Shape& s, const Reduction& reduction) {
  using A = typename Reduction::A;
  if (s.last)
    return share(s, true, s.c, LANES<A> * UNROLLED, [&](int64_t image, int64_t c0, int64_t c1) {
      reduction.channels_last(s, image, c0, c1);
    });
  share(s, true, s.c, 1, [&](int64_t image, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; c++) reduction.positions_last(s, image * s.c + c);
  });
}

// ---- passes that write one number for every number they read ----

template <class T, bool RESIDUAL, int NUMBER> struct Recalibrate {
  using A = Wide<T>;
  static constexpr int COEFFICIENTS = NUMBER;
  static constexpr bool EXTREMA = false;
  const T *x, *residual;
  T* out;
  Coefficients<A> given;
  A floor;  // below which there is no result: 0 for a ReLU

  void coefficients(const Shape& s, int64_t image, int64_t c, A* to, int64_t stride) const {
    given.template write<COEFFICIENTS>(s.c, image, c, to, stride);
  }

  template <int W, bool> INLINE void apply(int64_t at, Vector<A, W>, const Vector<A, W> k[]) const {
    Vector<A, W> v = load<W>(x + at), value = v * k[SCALE] + k[SHIFT];
    if constexpr (NUMBER > 2) value *= multiplier<W, NUMBER, A>(v, centre<W, NUMBER, A>(v, k), k);
    if constexpr (RESIDUAL) value += load<W>(residual + at);
    store<W>(out + at, value < floor ? splat<A, W>(floor) : value);
  }
};

template <class T> struct Gradients {
  const T *grad, *result, *x;
  T* dx;
  Coefficients<Wide<T>> recalibration;
  const Wide<T> *mean, *dmean, *dvar, *dmax, *dmin, *argmax, *argmin;
};

// GRAD: 0 where x was only pooled, 1 with the gradient before the ReLU, 2 with that behind it.
template <class T, int GRAD, bool VAR, bool PEAKS, int NUMBER> struct InputGradient {
  using A = Wide<T>;
  static constexpr int POOLED = NUMBER > 2 ? NUMBER : 1, COEFFICIENTS = POOLED + (PEAKS ? 7 : 3);
  static constexpr bool EXTREMA = PEAKS;
  Gradients<T> given;

  // Returns for every position whether an extremum of some channel of an image lies there.
  std::vector<bool> positions_apart(const Shape& s, int64_t image) const {
    std::vector<bool> apart(s.l, false);
    for (const A* at : {given.argmax, given.argmin})
      for (int64_t c = image * s.c; c < (image + 1) * s.c; c++) apart[int64_t(at[c])] = true;
    return apart;
  }

  void coefficients(const Shape& s, int64_t image, int64_t c, A* to, int64_t stride) const {
    const Gradients<T>& g = given;
    int64_t own = image * s.c + c;
    g.recalibration.template write<POOLED>(s.c, image, c, to, stride);
    if (!g.recalibration.of[SCALE]) to[0] = 1;
    to += POOLED * stride;
    to[0] = g.dmean ? g.dmean[own] / s.l : A(0);
    to[stride] = VAR ? 2 * g.dvar[own] / s.l : A(0);
    to[2 * stride] = VAR ? g.mean[own] : A(0);
    if constexpr (EXTREMA) {
      to[3 * stride] = g.dmax ? g.argmax[own] : A(-1);
      to[4 * stride] = g.dmax ? g.dmax[own] : A(0);
      to[5 * stride] = g.dmin ? g.argmin[own] : A(-1);
      to[6 * stride] = g.dmin ? g.dmin[own] : A(0);
    }
  }

  // With APART unset, no extremum lies at the position.
  template <int W, bool APART>
  INLINE void apply(int64_t at, Vector<A, W> position, const Vector<A, W> k[]) const {
    constexpr Vector<A, W> zero = {};
    const Vector<A, W>* const pooled = k + POOLED;
    Vector<A, W> sum = pooled[0];
    if constexpr (GRAD > 0) {
      Vector<A, W> d = load<W>(given.grad + at);
      if constexpr (GRAD > 1) d = load<W>(given.result + at) <= 0 ? zero : d;
      if constexpr (NUMBER > 2) {
        Vector<A, W> v = load<W>(given.x + at), centred = centre<W, NUMBER, A>(v, k);
        Vector<A, W> weight = multiplier<W, NUMBER, A>(v, centred, k), slope = k[SLOPE];
        if constexpr (NUMBER > SQUARE) slope += 2 * k[SQUARE] * centred;
        sum += d * (weight * (k[SCALE] + (v * k[SCALE] + k[SHIFT]) * (1 - weight) * slope));
      } else {
        sum += d * k[SCALE];
      }
    }
    if constexpr (VAR) sum += (load<W>(given.x + at) - pooled[2]) * pooled[1];
    if constexpr (EXTREMA && APART) {
      sum += position == pooled[3] ? pooled[4] : zero;
      sum += position == pooled[5] ? pooled[6] : zero;
    }
    store<W>(given.dx + at, sum);
  }
};

template <class Pass> void write(const Shape& s, const Pass& pass) {
  using A = typename Pass::A;
  constexpr int K = Pass::COEFFICIENTS;
  if (!s.last)
    return share(s, false, s.c, 1, [&](int64_t image, int64_t c0, int64_t c1) {
      const Pass own = pass;
      for (int64_t c = c0; c < c1; c++) {
        A k[K];
        own.coefficients(s, image, c, k, 1);
        int64_t first = (image * s.c + c) * s.l;
        over<A>(0, s.l, [&](auto size, int64_t p) {
          constexpr int B = decltype(size)::vectors, W = decltype(size)::lanes;
          const Vector<A, W> lanes = count_up<A, W>();
          Vector<A, W> wide[K];
          for (int i = 0; i < K; i++) wide[i] = splat<A, W>(k[i]);
#pragma GCC unroll 4
          for (int b = 0; b < B; b++)
            own.template apply<W, true>(first + p + b * W, lanes + A(p + b * W), wide);
        });
      }
    });
  share(s, false, s.l, 16, [&](int64_t image, int64_t p0, int64_t p1) {
    const Pass own = pass;
    const int64_t channels = s.c, first = image * s.l * s.c;
    std::vector<A> table(K * channels);
    A* const k = table.data();
    for (int64_t c = 0; c < channels; c++) own.coefficients(s, image, c, k + c, channels);
    std::vector<bool> apart;
    if constexpr (Pass::EXTREMA) apart = own.positions_apart(s, image);
    for (int64_t p = p0; p < p1; p++) {
      const auto row = [&](auto is_apart) {
        over<A>(0, channels, [&](auto size, int64_t c) {
          constexpr int B = decltype(size)::vectors, W = decltype(size)::lanes;
          constexpr bool APART = decltype(is_apart)::value;
#pragma GCC unroll 4
          for (int b = 0; b < B; b++) {
            Vector<A, W> wide[K];
            for (int i = 0; i < K; i++) wide[i] = load<W>(k + i * channels + c + b * W);
            const int64_t at = first + p * channels + c + b * W;
            own.template apply<W, APART>(at, splat<A, W>(p), wide);
          }
        });
      };
      if (Pass::EXTREMA && apart[p])
        row(std::true_type{});
      else
        row(std::false_type{});
    }
  });
}

template <class T> void pool_maps(const Shape& s, const T* x, const Pooled<T>& out) {
  if (out.var && out.max) return reduce(s, Pool<T, true, true>{x, out});
  if (out.var) return reduce(s, Pool<T, true, false>{x, out});
  if (out.max) return reduce(s, Pool<T, false, true>{x, out});
  reduce(s, Pool<T, false, false>{x, out});
}

template <class T, int NUMBER, class... Rest>
void recalibrate_maps(const Shape& s, const T* x, const T* residual, Rest... rest) {
  if (residual) return write(s, Recalibrate<T, true, NUMBER>{x, residual, rest...});
  write(s, Recalibrate<T, false, NUMBER>{x, residual, rest...});
}

template <class T, int NUMBER, class... Rest>
void sum_maps(const Shape& s, const T* grad, const T* result, const T* x, T* d, Rest... rest) {
  if (!result) return reduce(s, Sums<T, false, false, NUMBER>{grad, result, x, d, rest...});
  if (!d) return reduce(s, Sums<T, true, false, NUMBER>{grad, result, x, d, rest...});
  reduce(s, Sums<T, true, true, NUMBER>{grad, result, x, d, rest...});
}

template <class T, int GRAD, int NUMBER>
void input_gradient_by(const Shape& s, const Gradients<T>& given) {
  bool extrema = given.dmax || given.dmin;
  if (given.dvar && extrema) return write(s, InputGradient<T, GRAD, true, true, NUMBER>{given});
  if (given.dvar) return write(s, InputGradient<T, GRAD, true, false, NUMBER>{given});
  if (extrema) return write(s, InputGradient<T, GRAD, false, true, NUMBER>{given});
  write(s, InputGradient<T, GRAD, false, false, NUMBER>{given});
}

template <class T, int NUMBER>
void input_gradient_of_maps(const Shape& s, const Gradients<T>& given) {
  if (given.result) return input_gradient_by<T, 2, NUMBER>(s, given);
  if (NUMBER > 2 || given.grad) return input_gradient_by<T, 1, NUMBER>(s, given);
  if constexpr (NUMBER == 2) input_gradient_by<T, 0, NUMBER>(s, given);
}

}  // namespace

// Functions for feature maps of type T; passes.py adds the lines POOL(T) and RECALIBRATE(T, NUMBER)
// for those that it needs, by the number of coefficients.
#define SHAPE int64_t n, int64_t c, int64_t l, int64_t last, int64_t threads
#define GIVEN Shape{n, c, l, last != 0, int(threads)}
#define COEFFICIENTS(T)                                                                    \
  const Wide<T>*scale, const Wide<T>*shift, const Wide<T>*slope, const Wide<T>*offset,     \
      const Wide<T>*square, const Wide<T>*centre
#define RECALIBRATION(T) \
  Coefficients<Wide<T>> { {scale, shift, slope, offset, square, centre}, per_image != 0 }
#define POOL(T)                                                                            \
  extern "C" void pool(SHAPE, const T* x, Wide<T>* mean, Wide<T>* var, Wide<T>* max,       \
                       Wide<T>* min, Wide<T>* argmax, Wide<T>* argmin, Wide<T>* first) {   \
    pool_maps<T>(GIVEN, x, {mean, var, max, min, argmax, argmin, first});                  \
  }
#define RECALIBRATE(T, NUMBER)                                                              \
  extern "C" void recalibrate(SHAPE, const T* x, const T* residual, T* out,                \
                              COEFFICIENTS(T), int64_t per_image, int64_t relu) {          \
    Wide<T> floor = relu ? 0 : -std::numeric_limits<Wide<T>>::infinity();                  \
    recalibrate_maps<T, NUMBER>(GIVEN, x, residual, out, RECALIBRATION(T), floor);          \
  }                                                                                        \
  extern "C" void sums(SHAPE, const T* grad, const T* result, const T* x, T* d,            \
                       COEFFICIENTS(T), Wide<T>* gradients, int64_t per_image) {           \
    sum_maps<T, NUMBER>(GIVEN, grad, result, x, d, RECALIBRATION(T), gradients);            \
  }                                                                                        \
  extern "C" void input_gradient(                                                          \
      SHAPE, const T* grad, const T* result, const T* x, T* dx, COEFFICIENTS(T),           \
      const Wide<T>* mean, const Wide<T>* dmean, const Wide<T>* dvar, const Wide<T>* dmax, \
      const Wide<T>* dmin, const Wide<T>* argmax, const Wide<T>* argmin,                   \
      int64_t per_image) {                                                                 \
    Gradients<T> given{grad, result, x,    dx,   RECALIBRATION(T), mean,                   \
                       dmean, dvar,  dmax, dmin, argmax,           argmin};                \
    input_gradient_of_maps<T, NUMBER>(GIVEN, given);                                        \
  }
