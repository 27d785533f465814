// These turn a list of names into an enumeration and into the words for it.
#pragma once

#define CEPROP_NAME(name, ...) name,
#define CEPROP_WORD(name, ...) #name,
