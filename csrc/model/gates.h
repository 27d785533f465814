// What every difference of a vector field's states is multiplied by: nothing, or the slope rho'(a) of a drive a by
// which the unit moved. The difference never grows by it, as no slope is above 1.
#pragma once

namespace ceprop {

//   unit         a is all that rho is applied to when the unit moves
//   connection   a is the part of it that comes through the connection that learns
#define CEPROP_GATES(ENTRY) ENTRY(none) ENTRY(unit) ENTRY(connection)

#define CEPROP_NAME(name) name,
enum class Gate { CEPROP_GATES(CEPROP_NAME) };
#undef CEPROP_NAME

#define CEPROP_WORD(name) #name,
inline constexpr const char* gate_names[] = {CEPROP_GATES(CEPROP_WORD)};
#undef CEPROP_WORD

}  // namespace ceprop
