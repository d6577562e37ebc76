// Decoder layers for processors with AVX-512 and its bfloat16 products, and the parts of them that other layers use.
//
// Plain C functions over raw pointers, called through ctypes: no torch headers, so building takes seconds. Weights are
// packed once into panels of 32 output rows; every output element is summed over k in one order that depends on nothing
// else, so a row's result is bit for bit the same in any batch.

#include "decoder_layer.h"

namespace {

// Calls f with a null pointer of the element type: the one place where a type code becomes a type.
template <class F> auto typed(int is_bf16, F f) { return is_bf16 ? f((bf16*)nullptr) : f((float*)nullptr); }

}  // namespace

#define T std::remove_pointer_t<decltype(t)>

// Strides and sizes count elements. Every tensor is of the element type, unless said otherwise.
extern "C" {

void gw_pack(int is_bf16, const void* w, i64 n, i64 k, void* out) {
  typed(is_bf16, [&](auto* t) { pack((const T*)w, n, k, (T*)out); });
}

void gw_product(int is_bf16, const void* x, i64 ldx, i64 rows, i64 k, const void* packed, i64 n, const void* bias,
                void* y, i64 ldy, int activation, int threads) {
  typed(is_bf16, [&](auto* t) {
    product(Product<T>{(const T*)x, ldx, rows, k, (const T*)packed, n, (const T*)bias, (T*)y, ldy, activation}, threads);
  });
}

void gw_rms_norm(int is_bf16, const void* x, const void* weight, void* y, i64 rows, i64 width, float eps, float offset) {
  typed(is_bf16, [&](auto* t) { rms_norm((const T*)x, (const T*)weight, (T*)y, rows, width, eps, offset); });
}

void gw_keep(int is_bf16, void* keys, void* values, i64 block_size, i64 kv_heads, i64 dim, const Step* step,
             const void* key, i64 key_stride, const void* value, i64 value_stride) {
  typed(is_bf16, [&](auto* t) {
    const Cache<T> cache{(T*)keys, (T*)values, block_size, kv_heads, dim};
    keep(cache, *step, (const T*)key, key_stride, (const T*)value, value_stride);
  });
}

void gw_attend(int is_bf16, void* keys, void* values, i64 block_size, i64 kv_heads, i64 dim, const Step* step,
               float scale, float softcap, i64 window, const void* query, i64 query_stride, i64 heads, void* out) {
  typed(is_bf16, [&](auto* t) {
    const Cache<T> cache{(T*)keys, (T*)values, block_size, kv_heads, dim};
    attend(Attention<T>{cache, {scale, softcap, window}, (const T*)query, query_stride, heads, (T*)out}, *step);
  });
}

// x: [rows][hidden], changed in place; of rows that are not wanted the last layer is not finished. rotations: the angles,
// by `Layer::rotation`. room: rows * `Room::elements`, of the layer that needs most.
// Returns 0, or what a sum returned when it failed: x is spoilt then.
i64 gw_layers(int is_bf16, const Layer* layers, i64 count, const Step* step, void* x, const Rotation* rotations,
              void* room, const Group* group) {
  return typed(is_bf16, [&](auto* t) { return decode(layers, count, *step, *group, rotations, (T*)x, (T*)room); });
}

}  // extern "C"
