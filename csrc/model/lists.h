// What makes an enumeration, and the words for it, of a list of names.
#pragma once

#define CEPROP_NAME(name, ...) name,
#define CEPROP_WORD(name, ...) #name,
