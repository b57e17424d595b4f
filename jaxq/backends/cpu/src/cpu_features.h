// Which of the instruction sets that were compiled in the machine has, and which of them is in use.
#pragma once

namespace jaxq {

enum class Isa { kGeneric, kNeon, kAvx2, kAvxVnni, kAvx512, kAmx };

// Their names, comma-separated, best first; "generic" is always the last.
const char* AvailableIsas();

// The one in use: the best unless SetIsa chose another. Safe to call from any thread.
Isa CurrentIsa();
const char* IsaName(Isa isa);

// Chooses one by name; false, and nothing changes, if the machine lacks it or there is none of that name.
bool SetIsa(const char* name);

// The one of that name into *isa; false if the machine lacks it or there is none of that name.
bool FindIsa(const char* name, Isa* isa);

}  // namespace jaxq
