/* onnx-moe: the C API of the plugin library.
 *
 * The library registers its operators with ONNX Runtime through RegisterCustomOps. The functions below serve
 * everything else: choosing a kernel, the FP4 codec, dispatch, recording, caching, and the operators' arithmetic
 * without ONNX Runtime.
 *
 * Every function that can fail returns 0 on success; otherwise onnx_moe_last_error() holds one sentence, for the
 * calling thread, until that thread's next call. All functions may be called from any thread.
 */
#ifndef ONNX_MOE_H_
#define ONNX_MOE_H_

#include <stdint.h>

#if defined(_WIN32)
#define ONNX_MOE_API __declspec(dllexport)
#else
#define ONNX_MOE_API __attribute__((visibility("default")))
#endif

#ifdef __cplusplus
extern "C" {
#endif

ONNX_MOE_API const char* onnx_moe_version(void);

/* The sentence of the last failed call of this thread; "" if it has not failed. */
ONNX_MOE_API const char* onnx_moe_last_error(void);

/* ---- kernels ------------------------------------------------------------------------------------------------ */

/* Names of the kernels that this machine can run, best first; NULL past the end. */
ONNX_MOE_API const char* onnx_moe_kernel_name(int index);

/* Chooses the kernel of every later call in this process: a name from onnx_moe_kernel_name, or "auto".
 * The environment variable ONNX_MOE_KERNEL does the same before the first use. */
ONNX_MOE_API int onnx_moe_use_kernel(const char* name);

/* The kernel in use; NULL (and an error) when ONNX_MOE_KERNEL names one that this machine lacks. */
ONNX_MOE_API const char* onnx_moe_current_kernel(void);

/* ---- element types and formats ------------------------------------------------------------------------------ */

typedef enum onnx_moe_type { ONNX_MOE_FLOAT = 1, ONNX_MOE_FLOAT16 = 10, ONNX_MOE_BFLOAT16 = 16 } onnx_moe_type;

typedef enum onnx_moe_format { ONNX_MOE_MXFP4 = 0, ONNX_MOE_NVFP4 = 1, ONNX_MOE_FP4 = 2 } onnx_moe_format;

/* How a block's scale follows from its weights. The first four names and rules are those of the OCP MX
 * implementations: floor(log2 max) - 2; ceil(log2 max) - 2; log2 of the smallest power of two that clips nothing;
 * max rounded to one mantissa bit first. For nvfp4 and fp4, whose scales have a mantissa, floor, ceil (and rceil)
 * and even say how max/6 is rounded to the scale's type. mse takes the scale with the least squared error. */
typedef enum onnx_moe_scale_rule {
  ONNX_MOE_SCALE_MSE = 0,
  ONNX_MOE_SCALE_EVEN = 1,
  ONNX_MOE_SCALE_CEIL = 2,
  ONNX_MOE_SCALE_FLOOR = 3,
  ONNX_MOE_SCALE_RCEIL = 4
} onnx_moe_scale_rule;

/* How codes and scales of a matrix lie: row by row, or in groups of 16 rows, the codes as [columns / 8, 16, 4 bytes],
 * the scales as [columns / block_size, 16]. */
typedef enum onnx_moe_weight_layout { ONNX_MOE_ROWS = 0, ONNX_MOE_INTERLEAVED = 1 } onnx_moe_weight_layout;

/* ---- the codec ---------------------------------------------------------------------------------------------- */

/* A matrix of `rows` rows of `columns` weights in FP4. scales: uint8 (mxfp4, nvfp4) or float16 (fp4). */
typedef struct onnx_moe_fp4_matrix {
  int32_t format;
  int32_t block_size;
  int64_t rows;
  int64_t columns;
  uint8_t* codes;     /* [rows, columns / 2], low nibble = even column */
  void* scales;       /* [rows, columns / block_size] */
  float global_scale; /* multiplies every weight; 1 where the format has none */
} onnx_moe_fp4_matrix;

/* Quantises weights [rows, columns] of `type` into `out` (global_scale is an input, see onnx_moe_choose_global_scale).
 * A NaN or an infinity among the weights is an error. */
ONNX_MOE_API int onnx_moe_quantize(const void* weights, int32_t type, int32_t scale_rule, onnx_moe_fp4_matrix* out);

/* As onnx_moe_quantize with ONNX_MOE_SCALE_MSE, but a column's squared errors count importance [columns] times. NULL:
 * alike. */
ONNX_MOE_API int onnx_moe_quantize_weighted(const void* weights, int32_t type, const float* importance,
                                            onnx_moe_fp4_matrix* out);

/* Sets out->global_scale for weights [rows, columns]: 1 where the format has none; for nvfp4, maximum / (6 * 448), or
 * for ONNX_MOE_SCALE_MSE the best of it and of larger ones on a sample of rows. Codes and scales are not touched. */
ONNX_MOE_API int onnx_moe_choose_global_scale(const void* weights, int32_t type, int32_t scale_rule,
                                              const float* importance, onnx_moe_fp4_matrix* out);

/* Decodes `matrix` into float weights [rows, columns]. */
ONNX_MOE_API int onnx_moe_dequantize(const onnx_moe_fp4_matrix* matrix, float* weights);

/* ---- quantising for the inputs that a matrix meets ------------------------------------------------------------ */

/* What of a matrix a call works on. columns: whole blocks, 128 at most. Rows are independent: any split of them over
 * threads gives the same result. */
typedef struct onnx_moe_matrix_part {
  int64_t first_row;
  int64_t rows;
  int64_t first_column;
  int64_t columns;
} onnx_moe_matrix_part;

/* Scales and codes for columns of W, so that Σ over rows of e H eᵀ, e = W − Q, stays small: GPTQ. H = (U D) (U D)ᵀ with
 * U upper, its diagonal ones. weights and errors are [columns, rows], column by column. errors holds on entry what the
 * columns before the part ask to be added to its weights, e U of those, and W − Q afterwards.
 * feedback: U [columns, columns], row by row; pivots: the diagonal of D. A NaN or an infinity is an error. */
ONNX_MOE_API int onnx_moe_round_columns(const float* weights, float* errors, const float* feedback, const float* pivots,
                                        const onnx_moe_matrix_part* part, onnx_moe_fp4_matrix* out);

/* Moves every code of a part, in turn, to the best one while all others stay; scales stay. weights and errors as above.
 * hessian: H [columns, columns]; gradients: e H of the part as of entry, [part's columns, rows]. */
ONNX_MOE_API int onnx_moe_descend_columns(const float* weights, float* errors, const float* hessian,
                                          const float* gradients, const onnx_moe_matrix_part* part,
                                          onnx_moe_fp4_matrix* out);

/* ---- dispatch ----------------------------------------------------------------------------------------------- */

/* Groups assignments by expert: a stable counting sort of expert_ids [tokens, slots], in O(assignments + experts).
 * id_bytes is 4 for int32 ids, 8 for int64.
 * order[i] is the flat index of the i-th assignment in expert order; offsets [num_experts + 1] delimits the experts;
 * inverse (may be NULL) is the inverse permutation. An id outside [0, num_experts) is an error. */
ONNX_MOE_API int onnx_moe_group_tokens(const void* expert_ids, int32_t id_bytes, int64_t tokens, int64_t slots,
                                       int64_t num_experts, int64_t* order, int64_t* offsets, int64_t* inverse);

/* Rows to the experts: out [count, row_bytes] with out[i] = x[indices[i]], bit for bit, of x [rows, row_bytes]. An
 * index outside [0, rows) is an error. Large calls share the work out among `threads` threads, of which the caller's is
 * one. */
typedef struct onnx_moe_gather {
  const void* x;
  int64_t rows;
  int64_t row_bytes;
  const int64_t* indices;
  int64_t count;
  int32_t threads;
  void* out;
} onnx_moe_gather;
ONNX_MOE_API int onnx_moe_gather_rows(const onnx_moe_gather* args);

/* And back to their tokens: out [tokens, columns] with out[t] = sum over s of weights[t, s] * y[positions[t, s]],
 * summed in the order of the slots in float32, whatever the type of y [rows, columns] and out. With `inverse` of
 * onnx_moe_group_tokens as positions, y has the order of the experts. */
typedef struct onnx_moe_scatter {
  int32_t type; /* an onnx_moe_type, of y and out */
  const void* y;
  int64_t rows;
  int64_t columns;
  const int64_t* positions; /* [tokens, slots] */
  const float* weights;     /* [tokens, slots] */
  int64_t tokens;
  int64_t slots;
  int32_t threads;
  void* out;
} onnx_moe_scatter;
ONNX_MOE_API int onnx_moe_scatter_rows(const onnx_moe_scatter* args);

/* ---- recording routing ---------------------------------------------------------------------------------------- */

/* Sessions with the configuration entry onnx_moe.trace = counters or full record what their routers choose, under the
 * name of the entry onnx_moe.trace_name ("default"), for as long as they live. Full recording keeps each call, up to
 * onnx_moe.trace_limit expert ids; later calls are counted only. Shared experts are left out. */

/* Later calls belong to `request` and to `phase`: 0 prefill, 1 decode, -1 by the shape of each call (it decodes when
 * its sequences, of hidden states [..., sequence, H], are 1 long). Without a label: -1 and request 0. */
ONNX_MOE_API int onnx_moe_recording_label(const char* name, int32_t phase, int32_t request);

/* What later calls are where no label says it: 0 prefill, 1 decode, -1 by the shape of each call. For hosts that know
 * more than a router sees: models that flatten hidden states to [tokens, H] look alike for a prompt of four tokens and
 * for four sequences of one new token. */
ONNX_MOE_API int onnx_moe_recording_default_phase(const char* name, int32_t phase);

ONNX_MOE_API int onnx_moe_recording_clear(const char* name);

/* A copy of what is recorded so far. */
typedef struct onnx_moe_recording onnx_moe_recording;
ONNX_MOE_API int onnx_moe_recording_take(const char* name, onnx_moe_recording** out);
ONNX_MOE_API void onnx_moe_recording_free(onnx_moe_recording* recording);

/* Layers are numbered in the order of their first calls. Pointers live as long as the recording. */
typedef struct onnx_moe_recorded_calls {
  int64_t num_layers;
  int64_t num_calls; /* 0 unless onnx_moe.trace is full */
  int64_t dropped_calls;
  const int32_t* layers;   /* [num_calls] */
  const uint8_t* phases;   /* [num_calls]: 0 prefill, 1 decode */
  const int32_t* requests; /* [num_calls] */
  const int64_t* offsets;  /* [num_calls + 1] into the two below */
  const int32_t* experts;  /* [tokens, top_k] of each call */
  const float* weights;    /* likewise */
} onnx_moe_recorded_calls;
ONNX_MOE_API void onnx_moe_recording_calls(const onnx_moe_recording* recording, onnx_moe_recorded_calls* out);

typedef struct onnx_moe_recorded_layer {
  const char* name; /* of the node */
  int64_t num_experts;
  int64_t top_k;
  int64_t calls[2]; /* by phase, as the next three */
  int64_t tokens[2];
  const int64_t* counts[2]; /* [num_experts]: how often each was chosen */
  const double* mass[2];    /* [num_experts]: the sum of its weights */
} onnx_moe_recorded_layer;
ONNX_MOE_API int onnx_moe_recording_layer(const onnx_moe_recording* recording, int64_t layer,
                                          onnx_moe_recorded_layer* out);

/* ---- profiles of routing -------------------------------------------------------------------------------------- */

/* Counts of a fixed size over any number of calls. A sketch is for one thread at a time. */
typedef struct onnx_moe_sketch onnx_moe_sketch;
ONNX_MOE_API int onnx_moe_sketch_create(int64_t num_layers, int64_t num_experts, int64_t top_k, onnx_moe_sketch** out);
ONNX_MOE_API void onnx_moe_sketch_free(onnx_moe_sketch* sketch);

/* Calls of routers in the order of their execution. */
typedef struct onnx_moe_traced_calls {
  int64_t num_calls;
  const int32_t* layers;      /* [num_calls] */
  const uint8_t* phases;      /* [num_calls]: 0 prefill, 1 decode */
  const int32_t* requests;    /* [num_calls] */
  const int64_t* offsets;     /* [num_calls + 1] into the next two */
  const int32_t* experts;     /* [tokens, top_k] of each call, best first */
  const float* weights;       /* likewise, or NULL */
  const float* probabilities; /* of all experts before top-k, [tokens of all calls, num_experts], or NULL */
} onnx_moe_traced_calls;

/* Adds calls. Where one of them cannot be (a layer, phase or expert out of range), it fails and adds none. */
ONNX_MOE_API int onnx_moe_sketch_add(onnx_moe_sketch* sketch, const onnx_moe_traced_calls* calls);

typedef enum onnx_moe_number { ONNX_MOE_INT64 = 0, ONNX_MOE_UINT32 = 1, ONNX_MOE_DOUBLE = 2 } onnx_moe_number;

/* A column of counts, row by row, until the next call of onnx_moe_sketch_add. P = 2 phases, L layers, E experts.
 *   calls, tokens [P, L]; requests [1] (2^20 at the most)
 *   rank_counts [P, L, E, top_k]: how often an expert was the best, the second, ...
 *   weighted_uses [P, L, E]: of the calls with weights; mass, mass_squares [P, L, E]: sums of its weights and of their
 *     squares
 *   probability_tokens [P, L], probability_sums [P, L, E]: of the calls with probabilities
 *   first_use [L, E]: the layer's token that chose it first, or -1
 *   pairs [L, E, E]: tokens that chose both, the first (middle) before the second in their order of rank
 *   transitions [L, E, E]: uses in a layer (last) after uses in the layer before (middle) by the same token; of the
 *     first 4096 tokens of a call, as the next four. transition_tokens [L]
 *   layer_shared, layer_tokens [L, L]: experts that a token chose under the same number in two layers (the first is
 *     lower), and tokens that were compared: those of every eighth call. layer_sizes [L, L]: distinct experts that
 *     those tokens chose in the first of the two layers
 *   lag_shared, lag_tokens [P, L, 16]: experts that a token has in common with the one 1, 2, ... 16 before it
 *   gaps [P, L, 32]: uses of an expert [2^b, 2^(b+1)) tokens of the layer after its last use
 *   stack_distances [P, L E + 1]: lookups (distinct experts of a call) by the number of other experts, of all layers,
 *     that were used since; the last: first uses. An LRU cache of c experts hits those below c.
 *   window_tokens [P], window_counts, window_mass, window_probabilities [P, 64, L, E]: counts, mass and probabilities
 *     by time, in windows of so many tokens of the layer (the last one is empty where there were no probabilities) */
ONNX_MOE_API int onnx_moe_sketch_column(const onnx_moe_sketch* sketch, const char* name, const void** data,
                                        int64_t* length, int32_t* number);

/* ---- caching experts ---------------------------------------------------------------------------------------- */

/* Which resident expert gives up its slot: the least recently used; the one with the least decayed frequency of use;
 * the one whose next use is furthest away, which only a replay can know. */
typedef enum onnx_moe_cache_policy {
  ONNX_MOE_LRU = 0,
  ONNX_MOE_DECAYED_LFU = 1,
  ONNX_MOE_BELADY = 2
} onnx_moe_cache_policy;

/* Experts are numbered by key = layer * num_experts + expert. */
typedef struct onnx_moe_cache_setup {
  int64_t num_layers;
  int64_t num_experts;   /* of a layer */
  int64_t capacity;      /* slots, each for one expert */
  int64_t layer_floor;   /* slots that a layer keeps against the needs of others */
  int64_t share;         /* missing experts of one visit that take slots, those chosen last; -1: all of them */
  int32_t policy;        /* an onnx_moe_cache_policy */
  double decay;          /* of a use, for each later call of its layer: in (0, 1]; decayed LFU */
  const int64_t* pinned; /* keys that go only when nothing else can; NULL when there are none */
  int64_t num_pinned;
  const int64_t* preloaded; /* keys that hold a slot at the start; NULL when there are none */
  int64_t num_preloaded;
} onnx_moe_cache_setup;

/* Calls of layers, in order: visit v is of layers[v] and chose the experts [offsets[v], offsets[v + 1]). */
typedef struct onnx_moe_routing_trace {
  int64_t num_visits;
  const int32_t* layers;  /* [num_visits] */
  const int64_t* offsets; /* [num_visits + 1] */
  const int32_t* experts; /* [offsets[num_visits]] */
} onnx_moe_routing_trace;

typedef struct onnx_moe_cache_counts {
  int64_t hits; /* hits + misses: distinct experts of each visit, summed */
  int64_t misses;
  int64_t evictions;
  int64_t bypassed; /* of the misses: those that took no slot */
} onnx_moe_cache_counts;

/* How the operators' own cache divides `slots`, each for one expert, for num_layers layers of num_experts experts and
 * top_k of a token; `prefetches`: whether it reads ahead. */
typedef struct onnx_moe_slot_counts {
  int64_t least;    /* slots that it needs; with fewer, the next four are 0 */
  int64_t capacity; /* of the cache, as in onnx_moe_cache_setup; the next two likewise */
  int64_t layer_floor;
  int64_t share;
  int64_t staging; /* for experts that pass the cache by */
} onnx_moe_slot_counts;
ONNX_MOE_API int onnx_moe_divide_slots(int64_t num_layers, int64_t num_experts, int64_t top_k, int64_t slots,
                                       int32_t prefetches, onnx_moe_slot_counts* out);

/* Replays a trace against a cache, with the decisions that the operators' own cache takes. For each of the trace's
 * experts (both may be NULL): outcomes is 0 for a miss, 1 for a hit, 2 where the visit chose it before; evicted is the
 * key that gave up its slot, or -1. */
ONNX_MOE_API int onnx_moe_simulate_cache(const onnx_moe_cache_setup* setup, const onnx_moe_routing_trace* trace,
                                         onnx_moe_cache_counts* counts, uint8_t* outcomes, int64_t* evicted);

/* What keeps the experts of a living session in memory; `session` is its entry onnx_moe.session. `json`: mode, budget
 * and counters as a JSON object, until this thread's next call. */
ONNX_MOE_API int onnx_moe_residency(const char* session, const char** json);

/* Another budget for the session's expert cache, as its entry onnx_moe.cache_bytes would say it. */
ONNX_MOE_API int onnx_moe_set_cache_bytes(const char* session, const char* budget);

/* Writes how much the session has used each expert: a file for another session's entry onnx_moe.counters. */
ONNX_MOE_API int onnx_moe_save_counters(const char* session, const char* path);

/* ---- caches of the caller's objects --------------------------------------------------------------------------- */

/* Bookkeeping for a cache whose objects (arrays of experts, whole or in parts) the caller keeps: sizes, order of
 * leaving and leases, by the policies that the operators' own cache has. The caller drops the objects whose numbers an
 * insertion or a new budget returns. */
typedef struct onnx_moe_object_cache onnx_moe_object_cache;

/* policy: ONNX_MOE_LRU, or ONNX_MOE_DECAYED_LFU with a decay as in onnx_moe_cache_setup. */
ONNX_MOE_API int onnx_moe_object_cache_create(int64_t num_layers, int64_t num_experts, int64_t budget_bytes,
                                              int32_t policy, double decay, onnx_moe_object_cache** out);
ONNX_MOE_API void onnx_moe_object_cache_free(onnx_moe_object_cache* cache);

/* A call of `layer` chose these experts, repetitions allowed: what decayed LFU learns from. */
ONNX_MOE_API int onnx_moe_object_cache_visit(onnx_moe_object_cache* cache, int64_t layer, const int32_t* experts,
                                             int64_t count);

/* Numbers of objects, until the calling thread's next call of a function that takes such a list. */
typedef struct onnx_moe_objects {
  int64_t count;
  const int64_t* numbers;
} onnx_moe_objects;

/* Takes in an object of an expert: `object` is its number, or -1 when it is larger than the budget less what is leased;
 * then nothing leaves. A number is free for others once its object has left. */
ONNX_MOE_API int onnx_moe_object_cache_insert(onnx_moe_object_cache* cache, int64_t layer, int64_t expert,
                                              int64_t bytes, int64_t* object, onnx_moe_objects* evicted);

/* Makes an object the most recently used one; keeps it from leaving, as often as it is released again; takes it out. */
ONNX_MOE_API int onnx_moe_object_cache_use(onnx_moe_object_cache* cache, int64_t object);
ONNX_MOE_API int onnx_moe_object_cache_lease(onnx_moe_object_cache* cache, int64_t object);
ONNX_MOE_API int onnx_moe_object_cache_release(onnx_moe_object_cache* cache, int64_t object);
ONNX_MOE_API int onnx_moe_object_cache_erase(onnx_moe_object_cache* cache, int64_t object);

ONNX_MOE_API int onnx_moe_object_cache_resize(onnx_moe_object_cache* cache, int64_t budget_bytes,
                                              onnx_moe_objects* evicted);

/* Bytes of all objects in the cache. */
ONNX_MOE_API int64_t onnx_moe_object_cache_bytes(const onnx_moe_object_cache* cache);

/* ---- predicting experts ---------------------------------------------------------------------------------------- */

/* The last calls of one layer, at most `window` of them. */
typedef struct onnx_moe_routing_history onnx_moe_routing_history;
ONNX_MOE_API int onnx_moe_routing_history_create(int64_t window, onnx_moe_routing_history** out);
ONNX_MOE_API void onnx_moe_routing_history_free(onnx_moe_routing_history* history);
ONNX_MOE_API int onnx_moe_routing_history_record(onnx_moe_routing_history* history, const int32_t* experts,
                                                 int64_t count);
ONNX_MOE_API int onnx_moe_routing_history_clear(onnx_moe_routing_history* history);
ONNX_MOE_API int64_t onnx_moe_routing_history_size(const onnx_moe_routing_history* history);

/* Experts, until the calling thread's next call of a function that takes such a list. */
typedef struct onnx_moe_experts {
  int64_t count;
  const int32_t* ids;
  const double* values; /* NULL where each has none */
} onnx_moe_experts;

/* Those of the newest call. */
ONNX_MOE_API int onnx_moe_routing_history_last(const onnx_moe_routing_history* history, onnx_moe_experts* out);

/* values: the sum of decay^age over the calls that hold an expert; the newest call has age 0. */
ONNX_MOE_API int onnx_moe_routing_history_frequencies(const onnx_moe_routing_history* history, double decay,
                                                      onnx_moe_experts* out);

/* How a layer's next experts follow from its past: the current ones again; the most frequent of the history, of those
 * with a least share of it; by decayed frequency plus 2 for each current expert; likewise with weights of the caller's.
 * Without a history: the current ones. */
typedef enum onnx_moe_prediction_rule {
  ONNX_MOE_PREDICT_REPEAT = 0,
  ONNX_MOE_PREDICT_HISTORY = 1,
  ONNX_MOE_PREDICT_RECENCY = 2,
  ONNX_MOE_PREDICT_WEIGHTED = 3
} onnx_moe_prediction_rule;

typedef struct onnx_moe_prediction {
  int32_t rule;                            /* an onnx_moe_prediction_rule */
  const onnx_moe_routing_history* history; /* NULL when there is none */
  const int32_t* current;                  /* [num_current]: experts of the layer's newest call */
  int64_t num_current;
  int64_t most;          /* experts that are wanted */
  double decay;          /* recency */
  double min_confidence; /* history: the least share of all its uses */
  const double* weights; /* weighted: one for each call of the history, oldest first */
} onnx_moe_prediction;

/* The likeliest experts, best first. */
ONNX_MOE_API int onnx_moe_predict_experts(const onnx_moe_prediction* prediction, onnx_moe_experts* out);

/* Learns, from the routing of a whole model, which experts of a layer follow which of the layer before it. */
typedef struct onnx_moe_cross_layer_table onnx_moe_cross_layer_table;
ONNX_MOE_API int onnx_moe_cross_layer_table_create(int64_t num_layers, int64_t num_experts,
                                                   onnx_moe_cross_layer_table** out);
ONNX_MOE_API void onnx_moe_cross_layer_table_free(onnx_moe_cross_layer_table* table);

/* A call of `layer` chose these distinct experts. */
ONNX_MOE_API int onnx_moe_cross_layer_table_routed(onnx_moe_cross_layer_table* table, int64_t layer,
                                                   const int32_t* experts, int64_t count);

/* The likeliest experts of the layer's next call, given the newest call of the layer before it; at most `most`. */
ONNX_MOE_API int onnx_moe_cross_layer_table_predict(const onnx_moe_cross_layer_table* table, int64_t layer,
                                                    int64_t most, onnx_moe_experts* out);

/* ---- devices ------------------------------------------------------------------------------------------------ */

/* The GPU that onnx_moe.device = metal would use, for people; NULL when there is none, and onnx_moe_last_error() says
   why. */
ONNX_MOE_API const char* onnx_moe_device(void);

/* ---- the operators, without ONNX Runtime -------------------------------------------------------------------- */

typedef struct onnx_moe_router_args {
  int32_t type;      /* of hidden_states */
  int32_t gate_type; /* of gate_weight and gate_bias */
  int64_t tokens;
  int64_t hidden_size;
  int64_t num_experts;
  const void* hidden_states;    /* [tokens, hidden_size], or logits [tokens, num_experts] without gate_weight */
  const void* gate_weight;      /* [num_experts, hidden_size] or NULL */
  const void* gate_bias;        /* [num_experts] or NULL */
  const float* correction_bias; /* [num_experts] or NULL */
  int64_t top_k;
  const char* scoring;
  int32_t normalize;
  float norm_epsilon;
  float norm_min;
  float scaling_factor;
  int64_t num_groups;
  int64_t top_k_groups;
  const char* group_scoring;
  int64_t num_shared_experts;
  int32_t* expert_ids;   /* [tokens, top_k + num_shared_experts] */
  float* expert_weights; /* likewise */
  float* router_logits;  /* [tokens, num_experts] or NULL */
} onnx_moe_router_args;

ONNX_MOE_API int onnx_moe_router(const onnx_moe_router_args* args);

typedef struct onnx_moe_expert_gemm_args {
  int32_t type; /* of x and y */
  int32_t bias_type;
  int64_t tokens;
  int64_t slots; /* k: experts of a token */
  int64_t num_experts;
  int64_t rows;       /* N */
  int64_t columns;    /* K */
  int32_t x_per_slot; /* x is [tokens, slots, K] rather than [tokens, K] */
  const void* x;
  const int32_t* expert_ids;   /* [tokens, slots] */
  const uint8_t* weights;      /* [num_experts, N, K / 2] */
  const void* scales;          /* [num_experts, N, K / block_size] */
  const float* global_scale;   /* NULL, [num_experts] or [num_experts, 2] */
  int64_t global_scales;       /* a row's length: 1 or 2 */
  const void* bias;            /* NULL or [num_experts, N] */
  const float* expert_weights; /* NULL or [tokens, slots]: combine */
  int32_t format;
  int32_t block_size;
  const char* activation;
  int32_t gated;
  int32_t interleaved;
  float alpha;
  float beta;
  float limit;
  int32_t accuracy_level; /* 0 to 4, as in MoEExpertGemmFP4 */
  int32_t weight_layout;  /* an onnx_moe_weight_layout */
  void* y;                /* [tokens, slots, N'] or [tokens, N'] */
} onnx_moe_expert_gemm_args;

ONNX_MOE_API int onnx_moe_expert_gemm(const onnx_moe_expert_gemm_args* args);

#ifdef __cplusplus
}
#endif

#endif /* ONNX_MOE_H_ */
