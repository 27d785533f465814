// The instruction set that a source file compiles the kernels for: it defines CEPROP_SET, the set's name, and
// CEPROP_VECTOR_BYTES first. Without them the set is what every machine has. Each set lives in a namespace of its own,
// so that the linker cannot mix them.
#pragma once

#ifndef CEPROP_SET
#define CEPROP_SET portable
#define CEPROP_VECTOR_BYTES 16
#endif
