// Convolutions of few channels, 3x3 or 1x1, of the same size in and out, float32, NCHW: what oneDNN pads to 16 channels.
//
// A row of an image is one or two vectors of 16 floats; a block of output channels stays in registers while the
// input's rows pass by. Images are copied once into planes with a border of zeros, so that no loop asks where it is.

#include <cstdint>
#include <cstring>
#include <vector>

namespace {

constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));
typedef float Unaligned __attribute__((vector_size(LANES * sizeof(float)), aligned(4), may_alias));

Vector load(const float* from) { return *reinterpret_cast<const Unaligned*>(from); }
void store(float* to, Vector value) { *reinterpret_cast<Unaligned*>(to) = value; }

struct Shape {
    int height, width;
    int vectors() const { return (width + LANES - 1) / LANES; }
    int pitch() const { return vectors() * LANES + 2; }
    int64_t plane() const { return int64_t(height + 2) * pitch(); }
    int64_t image() const { return int64_t(height) * width; }
};

// Copy the planes of one image (channels, H, W) into planes with a border of zeros.
void pad(const float* image, float* padded, int channels, Shape shape) {
    for (int channel = 0; channel < channels; ++channel)
        for (int row = 0; row < shape.height; ++row)
            std::memcpy(padded + channel * shape.plane() + (row + 1) * shape.pitch() + 1,
                        image + channel * shape.image() + row * shape.width, shape.width * sizeof(float));
}

// A block of COUT output channels, rows of VECTORS vectors. Weights (COUT, inputs, 3, 3) lie `stride` apart.
template <int SIDE, int COUT, int VECTORS>
void convolve_block(const float* padded, const float* weight, int64_t stride, const float* bias, float* output,
                    int inputs, Shape shape) {
    for (int row = 0; row < shape.height; ++row) {
        Vector sum[COUT][VECTORS];
        for (int out = 0; out < COUT; ++out)
            for (int part = 0; part < VECTORS; ++part) sum[out][part] = Vector{} + (bias ? bias[out] : 0.0f);
        for (int in = 0; in < inputs; ++in)
            for (int y = 0; y < SIDE; ++y) {
                const float* line = padded + in * shape.plane() + (row + y + 1 - SIDE / 2) * shape.pitch() + 1 - SIDE / 2;
                for (int x = 0; x < SIDE; ++x) {
                    Vector pixels[VECTORS];
                    for (int part = 0; part < VECTORS; ++part) pixels[part] = load(line + x + part * LANES);
                    for (int out = 0; out < COUT; ++out) {
                        const float factor = weight[out * stride + (in * SIDE + y) * SIDE + x];
                        for (int part = 0; part < VECTORS; ++part) sum[out][part] += pixels[part] * factor;
                    }
                }
            }
        for (int out = 0; out < COUT; ++out) {
            float line[VECTORS * LANES];
            for (int part = 0; part < VECTORS; ++part) store(line + part * LANES, sum[out][part]);
            std::memcpy(output + out * shape.image() + row * shape.width, line, shape.width * sizeof(float));
        }
    }
}

template <int SIDE, int VECTORS>
void convolve_image(const float* padded, const float* weight, const float* bias, float* output, int inputs, int outputs,
                    Shape shape) {
    const int64_t stride = int64_t(inputs) * SIDE * SIDE;
    int out = 0;
    for (; out + 4 <= outputs; out += 4)
        convolve_block<SIDE, 4, VECTORS>(padded, weight + out * stride, stride, bias ? bias + out : nullptr,
                                   output + out * shape.image(), inputs, shape);
    for (; out < outputs; ++out)
        convolve_block<SIDE, 1, VECTORS>(padded, weight + out * stride, stride, bias ? bias + out : nullptr,
                                   output + out * shape.image(), inputs, shape);
}

// Add the image's part of the gradient of weights (COUT, inputs, 3, 3), still spread over lanes.
template <int SIDE, int COUT, int VECTORS>
void weigh_block(const float* padded, const float* gradient, Vector* sums, int inputs, Shape shape) {
    for (int in = 0; in < inputs; ++in)
        for (int y = 0; y < SIDE; ++y) {
            Vector sum[COUT][SIDE];
            for (int out = 0; out < COUT; ++out)
                for (int x = 0; x < SIDE; ++x) sum[out][x] = sums[((out * inputs + in) * SIDE + y) * SIDE + x];
            for (int row = 0; row < shape.height; ++row) {
                const float* line = padded + in * shape.plane() + (row + y + 1 - SIDE / 2) * shape.pitch() + 1 - SIDE / 2;
                for (int part = 0; part < VECTORS; ++part) {
                    Vector pixels[SIDE];
                    for (int x = 0; x < SIDE; ++x) pixels[x] = load(line + x + part * LANES);
                    for (int out = 0; out < COUT; ++out) {
                        const Vector slope =
                            load(gradient + out * shape.plane() + (row + 1) * shape.pitch() + 1 + part * LANES);
                        for (int x = 0; x < SIDE; ++x) sum[out][x] += slope * pixels[x];
                    }
                }
            }
            for (int out = 0; out < COUT; ++out)
                for (int x = 0; x < SIDE; ++x) sums[((out * inputs + in) * SIDE + y) * SIDE + x] = sum[out][x];
        }
}

template <int SIDE, int VECTORS>
void weigh_image(const float* padded, const float* gradient, Vector* sums, int inputs, int outputs, Shape shape) {
    int out = 0;
    for (; out + 4 <= outputs; out += 4)
        weigh_block<SIDE, 4, VECTORS>(padded, gradient + out * shape.plane(), sums + int64_t(out) * inputs * SIDE * SIDE, inputs, shape);
    for (; out < outputs; ++out)
        weigh_block<SIDE, 1, VECTORS>(padded, gradient + out * shape.plane(), sums + int64_t(out) * inputs * SIDE * SIDE, inputs, shape);
}

template <int SIDE, int VECTORS>
void convolve_batch(const float* input, const float* weight, const float* bias, float* output, int batch, int inputs,
                    int outputs, Shape shape) {
    std::vector<float> padded(inputs * shape.plane() + LANES);
    for (int image = 0; image < batch; ++image) {
        pad(input + image * inputs * shape.image(), padded.data(), inputs, shape);
        convolve_image<SIDE, VECTORS>(padded.data(), weight, bias, output + image * outputs * shape.image(), inputs,
                                      outputs, shape);
    }
}

template <int SIDE, int VECTORS>
void weigh_batch(const float* input, const float* gradient, float* weight, int batch, int inputs, int outputs,
                 Shape shape) {
    std::vector<float> padded(inputs * shape.plane() + LANES), slopes(outputs * shape.plane() + LANES);
    std::vector<Vector> sums(int64_t(outputs) * inputs * SIDE * SIDE, Vector{});
    for (int image = 0; image < batch; ++image) {
        pad(input + image * inputs * shape.image(), padded.data(), inputs, shape);
        pad(gradient + image * outputs * shape.image(), slopes.data(), outputs, shape);
        weigh_image<SIDE, VECTORS>(padded.data(), slopes.data(), sums.data(), inputs, outputs, shape);
    }
    for (size_t place = 0; place < sums.size(); ++place) {
        float sum = 0;
        for (int lane = 0; lane < LANES; ++lane) sum += sums[place][lane];
        weight[place] = sum;
    }
}

}  // namespace

// Rows of one or two vectors. Input (batch, inputs, height, width), weight (outputs, inputs, side, side), bias (outputs)
// or null, output (batch, outputs, height, width).
extern "C" void convolve(const float* input, const float* weight, const float* bias, float* output, int batch,
                         int inputs, int outputs, int height, int width, int side) {
    const Shape shape{height, width};
    const auto run = side == 1 ? (shape.vectors() == 1 ? convolve_batch<1, 1> : convolve_batch<1, 2>)
                               : (shape.vectors() == 1 ? convolve_batch<3, 1> : convolve_batch<3, 2>);
    run(input, weight, bias, output, batch, inputs, outputs, shape);
}

// The gradient of the weight, from that of the output.
extern "C" void weight_gradient(const float* input, const float* gradient, float* weight, int batch, int inputs,
                                int outputs, int height, int width, int side) {
    const Shape shape{height, width};
    const auto run = side == 1 ? (shape.vectors() == 1 ? weigh_batch<1, 1> : weigh_batch<1, 2>)
                               : (shape.vectors() == 1 ? weigh_batch<3, 1> : weigh_batch<3, 2>);
    run(input, gradient, weight, batch, inputs, outputs, shape);
}
