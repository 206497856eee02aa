// mtlfast._C: what Python needs from the native part that is not a tensor op. Knows no torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "common/isa.h"
#include "multi_hash_lookup/numpy_indices.h"

namespace py = pybind11;

namespace {

#define MTLFAST_STRING_(x) #x
#define MTLFAST_STRING(x) MTLFAST_STRING_(x)

constexpr const char* kCompiler =
#if defined(__clang__)
    "clang " __clang_version__;
#elif defined(__GNUC__)
    "gcc " __VERSION__;
#else
    "unknown";
#endif

py::list compiled_isas() {
  py::list names;
  const std::string all = mtlfast_compiled_isas();
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find(',', begin), all.size());
    names.append(all.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

py::dict build_config() {
  constexpr std::uint64_t target = MTLFAST_TORCH_TARGET_VERSION;
  py::dict config;
  config["version"] = MTLFAST_STRING(MTLFAST_VERSION);
  config["torch_target_version"] =
      std::to_string(target >> 56) + "." + std::to_string((target >> 48) & 0xff);
  config["cpu_isas"] = compiled_isas();
  config["compiler"] = kCompiler;
  return config;
}

void set_cpu_capability(const std::string& name) {
  if (mtlfast_set_cpu_capability(name.c_str()) == 0) {
    throw py::value_error("name: expected \"auto\" or one of \"" +
                          std::string(mtlfast_compiled_isas()) + "\" that this CPU runs (up to \"" +
                          mtlfast_cpu_capability_detected() + "\"), found \"" + name + "\"");
  }
}

using Int64Array = py::array_t<std::int64_t>;

// `object` as a one-dimensional int64 array, without copying or converting.
struct Int64View {
  const char* data;
  py::ssize_t stride;  // in bytes
  std::int64_t size;

  Int64View(const py::object& object, const char* name) {
    if (!py::isinstance<py::array>(object)) {
      fail(name, "a NumPy array", py::str(py::type::of(object).attr("__name__")));
    }
    const auto array = py::reinterpret_borrow<py::array>(object);
    if (!py::isinstance<Int64Array>(object)) fail(name, "dtype int64", py::str(array.dtype()));
    if (array.ndim() != 1) {
      fail(name, "one dimension", std::to_string(array.ndim()) + " dimensions");
    }
    data = static_cast<const char*>(array.data());
    stride = array.strides(0);
    size = array.shape(0);
  }

  std::int64_t operator[](std::int64_t i) const {
    std::int64_t value;
    std::memcpy(&value, data + i * stride, sizeof value);  // NumPy allows unaligned elements
    return value;
  }

  [[noreturn]] static void fail(const std::string& name, const std::string& expected,
                                const std::string& found) {
    throw py::value_error(name + ": expected " + expected + ", found " + found);
  }
};

std::string at(const char* name, std::int64_t i, std::int64_t value) {
  return std::string(name) + "[" + std::to_string(i) + "] = " + std::to_string(value);
}

Int64Array offsets_from_lengths(const py::object& lengths) {
  const Int64View view(lengths, "lengths");
  Int64Array offsets(view.size + 1);
  std::int64_t* out = offsets.mutable_data();
  out[0] = 0;
  for (std::int64_t i = 0; i < view.size; ++i) {
    const std::int64_t length = view[i];
    if (length < 0) Int64View::fail("lengths", "no negative length", at("lengths", i, length));
    if (__builtin_add_overflow(out[i], length, &out[i + 1])) {
      Int64View::fail("lengths", "a sum that fits into int64",
                      "an overflow at " + at("lengths", i, length));
    }
  }
  return offsets;
}

// Copies values[start:end) of every pair, one after another; the offsets are already checked.
void copy_ranges(const Int64View& values, const Int64View& starts, const std::int64_t* offsets,
                 std::int64_t* out) {
  const bool contiguous = values.stride == static_cast<py::ssize_t>(sizeof(std::int64_t));
  for (std::int64_t i = 0; i < starts.size; ++i) {
    const std::int64_t count = offsets[i + 1] - offsets[i];
    if (count == 0) continue;
    const std::int64_t start = starts[i];
    if (contiguous) {
      std::memcpy(out + offsets[i], values.data + start * values.stride,
                  static_cast<size_t>(count) * sizeof(std::int64_t));
    } else {
      for (std::int64_t j = 0; j < count; ++j) out[offsets[i] + j] = values[start + j];
    }
  }
}

py::tuple gather_ranges(const py::object& values, const py::object& starts,
                        const py::object& ends) {
  const Int64View source(values, "values");
  const Int64View begin(starts, "starts");
  const Int64View end(ends, "ends");
  if (begin.size != end.size) {
    Int64View::fail("ends", "as many elements as starts (" + std::to_string(begin.size) + ")",
                    std::to_string(end.size));
  }
  Int64Array offsets(begin.size + 1);
  std::int64_t* out = offsets.mutable_data();
  out[0] = 0;
  for (std::int64_t i = 0; i < begin.size; ++i) {
    const std::int64_t b = begin[i];
    const std::int64_t e = end[i];
    if (b < 0) Int64View::fail("starts", "no negative index", at("starts", i, b));
    if (e < b)
      Int64View::fail("ends", "ends[i] >= starts[i]",
                      at("ends", i, e) + " with " + at("starts", i, b));
    if (e > source.size) {
      Int64View::fail("ends", "at most len(values) = " + std::to_string(source.size),
                      at("ends", i, e));
    }
    if (__builtin_add_overflow(out[i], e - b, &out[i + 1])) {
      Int64View::fail("ends", "a total length that fits into int64",
                      "an overflow at " + at("ends", i, e));
    }
  }
  Int64Array gathered(out[begin.size]);
  std::int64_t* target = gathered.mutable_data();
  {
    py::gil_scoped_release release;
    copy_ranges(source, begin, out, target);
  }
  return py::make_tuple(gathered, offsets);
}

// multi_hash_indices of mtlfast.ops, on NumPy arrays.
Int64Array multi_hash_indices(const py::object& ids, std::int64_t num_codewords,
                              std::int64_t num_hashes, std::int64_t order,
                              const std::optional<std::vector<std::int64_t>>& key_fields,
                              const std::string& hash, std::int64_t first_hash) {
  using mtlfast::multi_hash_lookup::Crosses;
  const auto fail = [](const std::string& name, const std::string& expected,
                       const std::string& found) { Int64View::fail(name, expected, found); };
  if (!py::isinstance<py::array>(ids)) {
    fail("ids", "a NumPy array", py::str(py::type::of(ids).attr("__name__")));
  }
  const auto array = py::reinterpret_borrow<py::array>(ids);
  if (!py::isinstance<Int64Array>(ids)) fail("ids", "dtype int64", py::str(array.dtype()));
  if (array.ndim() != 2) {
    fail("ids", "shape [B, F]", std::to_string(array.ndim()) + " dimensions");
  }
  const bool siphash = hash == "siphash";
  if (!siphash && hash != "mix64") fail("hash", "one of ('mix64', 'siphash')", "'" + hash + "'");
  if (num_codewords < 1 || num_codewords > 0xFFFFFFFF) {
    fail("num_codewords", "from 1 to 2**32 - 1 codewords", std::to_string(num_codewords));
  }
  if (num_hashes < 1) fail("num_hashes", "an int of at least 1", std::to_string(num_hashes));
  if (first_hash < 0) fail("first_hash", "an int of at least 0", std::to_string(first_hash));
  if (siphash && first_hash + num_hashes > mtlfast::hash::kSipHashFunctions) {
    fail("num_hashes", "at most 11 hash functions with siphash",
         std::to_string(first_hash + num_hashes));
  }
  Crosses crosses;
  try {
    crosses = mtlfast::multi_hash_lookup::make_crosses(array.shape(1), order, key_fields);
  } catch (const std::runtime_error& error) {
    throw py::value_error(std::string(error.what()).substr(std::strlen("mtlfast: ")));
  }

  const std::int64_t batch = array.shape(0), num_fields = array.shape(1);
  const auto* const data = static_cast<const char*>(array.data());
  const py::ssize_t row_stride = array.strides(0), column_stride = array.strides(1);
  const auto id_at = [&](std::int64_t b, std::int64_t f) {
    std::int64_t id;
    std::memcpy(&id, data + b * row_stride + f * column_stride, sizeof id);
    return id;
  };
  for (std::int64_t b = 0; b < batch; ++b)
    for (std::int64_t f = 0; f < num_fields; ++f) {
      if (id_at(b, f) >= 0) continue;
      fail("ids", "no negative id",
           "ids[" + std::to_string(b) + ", " + std::to_string(f) +
               "] = " + std::to_string(id_at(b, f)));
    }
  Int64Array indices({batch, crosses.size(), num_hashes});
  std::int64_t* const out = indices.mutable_data();
  {
    py::gil_scoped_release release;
    for (std::int64_t b = 0; b < batch; ++b)
      mtlfast::multi_hash_lookup::sample_indices(
          crosses, [&](std::int64_t f) { return id_at(b, f); },
          static_cast<std::uint64_t>(num_codewords), num_hashes, first_hash, siphash,
          out + b * crosses.size() * num_hashes);
  }
  return indices;
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  m.doc() = "Native helpers of mtlfast that are not tensor ops.";
  m.def("build_config", &build_config,
        "What was compiled: version, torch_target_version, cpu_isas, compiler.");
  m.def("cpu_capability", &mtlfast_cpu_capability, "The instruction set in use.");
  m.def("cpu_capability_detected", &mtlfast_cpu_capability_detected,
        "The best compiled instruction set that this CPU runs.");
  m.def("set_cpu_capability", &set_cpu_capability, py::arg("name"),
        "Use a lower instruction set, or \"auto\"; ValueError where it cannot run here.");
  m.def("offsets_from_lengths", &offsets_from_lengths, py::arg("lengths"),
        "int64 [S] lengths -> int64 [S + 1] offsets, starting at 0.");
  m.def("gather_ranges", &gather_ranges, py::arg("values"), py::arg("starts"), py::arg("ends"),
        "Concatenate values[starts[i]:ends[i]] of a 1-D int64 array -> (values, offsets [S + 1]).");
  m.def("multi_hash_indices", &multi_hash_indices, py::arg("ids"), py::arg("num_codewords"),
        py::kw_only(), py::arg("num_hashes"), py::arg("order") = 2,
        py::arg("key_fields") = py::none(), py::arg("hash") = "mix64", py::arg("first_hash") = 0,
        "mtlfast.ops.multi_hash_indices on an int64 array [B, F] -> int64 [B, P, num_hashes].");
}
