# Read by llama-cpp-python's build (CMAKE_PROJECT_llama_cpp_INCLUDE, see the Makefile): builds the one
# library we load and nothing else, in about a minute on two cores instead of four.

# The binding forces this into the cache; a normal variable stands in front of the cache (CMP0126, CMP0077).
set(LLAMA_BUILD_COMMON OFF)
set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)

# libllama is some 150 small files behind the same large headers: compile them in groups.
cmake_language(DEFER CALL set_target_properties llama PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE 16)
