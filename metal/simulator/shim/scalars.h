// Integers, and the type traits that the other headers need.
#pragma once

#include "target.h"

namespace mslns {

typedef unsigned char uchar;
typedef unsigned short ushort;
typedef unsigned int uint;
typedef unsigned long ulong;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef unsigned int uint32_t;
typedef unsigned long uint64_t;
typedef int int32_t;
typedef long int64_t;

template <bool condition, class T>
struct msl_enable_if {};
template <class T>
struct msl_enable_if<true, T> {
  typedef T type;
};
template <bool condition, class T = void>
using msl_enable_if_t = typename msl_enable_if<condition, T>::type;

template <class A, class B>
constexpr bool msl_is_same = false;
template <class A>
constexpr bool msl_is_same<A, A> = true;

template <class T>
constexpr bool msl_is_integer =
    msl_is_same<T, bool> || msl_is_same<T, char> || msl_is_same<T, signed char> || msl_is_same<T, uchar> ||
    msl_is_same<T, short> || msl_is_same<T, ushort> || msl_is_same<T, int> || msl_is_same<T, uint> ||
    msl_is_same<T, long> || msl_is_same<T, ulong>;

}  // namespace mslns
