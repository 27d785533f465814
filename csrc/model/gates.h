// What every difference of a vector field's states is multiplied by: nothing, or the slope rho'(a) of a drive a by
// which the unit moved. The difference never grows by it, as no slope is above 1.
#pragma once

#include "lists.h"

namespace ceprop {

//   unit         a is all that rho is applied to when the unit moves
//   connection   a is the part of it that comes through the connection that learns
#define CEPROP_GATES(ENTRY) ENTRY(none) ENTRY(unit) ENTRY(connection)

enum class Gate { CEPROP_GATES(CEPROP_NAME) };

inline constexpr const char* gate_names[] = {CEPROP_GATES(CEPROP_WORD)};

}  // namespace ceprop
