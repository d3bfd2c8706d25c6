//! A residual network with fixed weights on the CPU: no gradient, one thread per call.
//!
//! He et al., Deep Residual Learning for Image Recognition, 2015 (arXiv 1512.03385). Pixels are stored one after the other, each with all
//! its channels, so a convolution is a product of windows `[pixels, side side inputs]` and weights `[side side inputs, outputs]`, and a
//! window's rows are copied whole. Several images should go through the network together, because the last maps have few pixels. No sum
//! runs over more than one image.

use multiversion::multiversion;

use crate::convolution::{InferenceBottleneck, InferenceConvolution};
use crate::kernel::{Mat, matmul_in};
use crate::scratch::Scratch;
use crate::{Error, Precision, Result};

/// The number of values in the windows that are copied at once.
const WINDOWS: usize = 1 << 18;
/// The number of channels of the pixels of an image.
const COLOURS: usize = 3;
/// The side of a window of the max pooling, and the number of pixels from one window to the next.
const POOL: (usize, usize) = (3, 2);

/// A stack of feature maps of several images, `[images, height, width, channels]`.
struct Maps {
    values: Scratch,
    images: usize,
    /// The height and the width.
    side: usize,
    channels: usize,
}

impl Maps {
    fn take(images: usize, side: usize, channels: usize) -> Self {
        Self { values: Scratch::take(images * side * side * channels), images, side, channels }
    }
}

/// The number of windows along a side, if the map is padded by half a window.
fn windows_along(side: usize, window: usize, stride: usize) -> usize {
    (side + 2 * (window / 2) - window) / stride + 1
}

/// A convolution as a product.
#[derive(Clone, Debug)]
struct Convolution {
    /// `[side, side, inputs, outputs]`.
    weight: Vec<f32>,
    bias: Vec<f32>,
    inputs: usize,
    side: usize,
    stride: usize,
}

impl Convolution {
    fn new(convolution: InferenceConvolution, inputs: usize) -> Result<Self> {
        let InferenceConvolution { kernel, bias, inputs: own, side, stride } = convolution;
        let (outputs, window) = (bias.len(), side * side);
        if own != inputs || kernel.len() != outputs * inputs * window || stride == 0 || side % 2 == 0 {
            return Err(Error::Msg(format!(
                "a convolution of {own} to {outputs} channels with {} weights and a side of {side} does not fit maps of {inputs} channels",
                kernel.len()
            )));
        }
        let mut weight = vec![0.0; kernel.len()];
        for (output, kernel) in kernel.chunks_exact((inputs * window).max(1)).enumerate() {
            for (at, &value) in kernel.iter().enumerate() {
                let (input, pixel) = (at / window, at % window);
                weight[(pixel * inputs + input) * outputs + output] = value;
            }
        }
        Ok(Self { weight, bias, inputs, side, stride })
    }

    fn outputs(&self) -> usize {
        self.bias.len()
    }

    /// The maps after the convolution.
    fn forward(&self, precision: Precision, x: &Maps) -> Maps {
        let mut out = Maps::take(x.images, windows_along(x.side, self.side, self.stride), self.outputs());
        for pixel in out.values.chunks_exact_mut(self.outputs()) {
            pixel.copy_from_slice(&self.bias);
        }
        self.add_products(precision, &mut out, x);
        out
    }

    /// Adds the maps after the convolution to `out`.
    fn add(&self, precision: Precision, out: &mut Maps, x: &Maps) {
        add_bias(&mut out.values, &self.bias);
        self.add_products(precision, out, x);
    }

    fn add_products(&self, precision: Precision, out: &mut Maps, x: &Maps) {
        let (length, outputs) = (self.side * self.side * self.inputs, self.outputs());
        let weight = Mat::new(&self.weight, length, outputs);
        if self.side == 1 && self.stride == 1 {
            let x = Mat::new(&x.values, x.values.len() / self.inputs, self.inputs);
            return matmul_in(precision, &mut out.values, x, weight, true);
        }
        let at_once = (WINDOWS / length).max(1);
        let mut windows = Scratch::take(at_once * length);
        for (block, out_rows) in out.values.chunks_mut(at_once * outputs).enumerate() {
            let rows = out_rows.len() / outputs;
            let windows = &mut windows[..rows * length];
            for (row, window) in windows.chunks_exact_mut(length).enumerate() {
                self.copy_window(window, x, out.side, block * at_once + row);
            }
            matmul_in(precision, out_rows, Mat::new(windows, rows, length), weight, true);
        }
    }

    /// Copies the window of the output at `row`, which counts images, rows and columns of maps of `along` pixels a side.
    fn copy_window(&self, window: &mut [f32], x: &Maps, along: usize, row: usize) {
        let (image, top, left) = (row / (along * along), row / along % along, row % along);
        let (side, inputs, padding) = (self.side, self.inputs, self.side / 2);
        let left = (left * self.stride) as isize - padding as isize;
        let first = left.max(0) as usize;
        let last = ((left + side as isize) as usize).min(x.side);
        let skipped = (first as isize - left) as usize * inputs;
        let copied = (last - first) * inputs;
        for (down, line) in window.chunks_exact_mut(side * inputs).enumerate() {
            let y = (top * self.stride + down).checked_sub(padding).filter(|&y| y < x.side);
            let Some(y) = y else {
                line.fill(0.0);
                continue;
            };
            let from = &x.values[((image * x.side + y) * x.side + first) * inputs..][..copied];
            line[..skipped].fill(0.0);
            line[skipped..skipped + copied].copy_from_slice(from);
            line[skipped + copied..].fill(0.0);
        }
    }
}

#[derive(Clone, Debug)]
struct Bottleneck {
    inside: [Convolution; 3],
    shortcut: Option<Convolution>,
}

impl Bottleneck {
    fn new(bottleneck: InferenceBottleneck, inputs: usize) -> Result<Self> {
        let InferenceBottleneck { inside: [down, middle, up], shortcut } = bottleneck;
        let down = Convolution::new(down, inputs)?;
        let middle = Convolution::new(middle, down.outputs())?;
        let up = Convolution::new(up, middle.outputs())?;
        let shortcut = shortcut.map(|shortcut| Convolution::new(shortcut, inputs)).transpose()?;
        let beside = shortcut.as_ref().map_or(inputs, Convolution::outputs);
        let strides = |convolution: &Convolution| convolution.stride;
        let inside = [down, middle, up];
        let stride: usize = inside.iter().map(strides).product();
        if beside != inside[2].outputs() || stride != shortcut.as_ref().map_or(1, strides) {
            return Err(Error::Msg(format!(
                "a bottleneck of {beside} channels with a stride of {stride} does not fit its shortcut"
            )));
        }
        Ok(Self { inside, shortcut })
    }

    fn forward(&self, precision: Precision, x: Maps) -> Maps {
        let mut inside = self.inside[0].forward(precision, &x);
        relu(&mut inside.values);
        let mut inside = self.inside[1].forward(precision, &inside);
        relu(&mut inside.values);
        let mut out = match &self.shortcut {
            Some(shortcut) => shortcut.forward(precision, &x),
            None => x,
        };
        self.inside[2].add(precision, &mut out, &inside);
        relu(&mut out.values);
        out
    }
}

/// A ResNet on the CPU: a convolution of the pixels, a ReLU, max pooling of 3 by 3 pixels with stride 2, bottlenecks, and the mean of the
/// last feature map.
#[derive(Clone, Debug)]
pub struct InferenceResNet {
    stem: Convolution,
    layers: Vec<Bottleneck>,
    precision: Precision,
}

impl InferenceResNet {
    /// Builds the network from its convolutions; products are computed in `precision`, f32 or bf16. Fails if the convolutions do not fit
    /// each other.
    pub fn new(stem: InferenceConvolution, layers: Vec<InferenceBottleneck>, precision: Precision) -> Result<Self> {
        let stem = Convolution::new(stem, COLOURS)?;
        let mut channels = stem.outputs();
        let layers = layers.into_iter().map(|layer| {
            let layer = Bottleneck::new(layer, channels)?;
            channels = layer.inside[2].outputs();
            Ok(layer)
        });
        let layers = layers.collect::<Result<_>>()?;
        Ok(Self { stem, layers, precision })
    }

    /// The vectors `[images, channels of the last map]` of images with the pixels `[images, 3, side, side]`.
    ///
    /// # Panics
    ///
    /// If `pixels` does not hold whole images.
    pub fn embed_images(&self, pixels: &[f32], side: usize) -> Vec<f32> {
        let image = COLOURS * side * side;
        assert!(image > 0 && pixels.len().is_multiple_of(image), "pixels of images of another side");
        let mut colours = Maps::take(pixels.len() / image, side, COLOURS);
        let images = colours.values.chunks_exact_mut(image).zip(pixels.chunks_exact(image));
        for (colours, image) in images {
            for (at, colours) in colours.chunks_exact_mut(COLOURS).enumerate() {
                (0..COLOURS).for_each(|colour| colours[colour] = image[colour * side * side + at]);
            }
        }
        let mut stem = self.stem.forward(self.precision, &colours);
        drop(colours);
        relu(&mut stem.values);
        let pooled = pool(&stem);
        drop(stem);
        let maps = self.layers.iter().fold(pooled, |maps, layer| layer.forward(self.precision, maps));
        means(&maps)
    }
}

/// The maxima of windows. The values are not negative, so the padding counts as 0.
fn pool(x: &Maps) -> Maps {
    let (window, stride) = POOL;
    let (channels, along) = (x.channels, windows_along(x.side, window, stride));
    let mut out = Maps::take(x.images, along, channels);
    out.values.fill(0.0);
    for (row, out) in out.values.chunks_exact_mut(channels).enumerate() {
        let (image, top, left) = (row / (along * along), row / along % along, row % along);
        let inside = |first: usize| (first * stride).saturating_sub(1)..(first * stride + window - 1).min(x.side);
        for y in inside(top) {
            for column in inside(left) {
                larger(out, &x.values[((image * x.side + y) * x.side + column) * channels..][..channels]);
            }
        }
    }
    out
}

/// The mean over the pixels of each map, `[images, channels]`.
fn means(x: &Maps) -> Vec<f32> {
    let (pixels, channels) = (x.side * x.side, x.channels);
    let mut vectors = vec![0.0; x.images * channels];
    let images = vectors.chunks_exact_mut(channels).zip(x.values.chunks_exact(pixels * channels));
    for (vector, maps) in images {
        for pixel in maps.chunks_exact(channels) {
            vector.iter_mut().zip(pixel).for_each(|(sum, value)| *sum += value);
        }
        vector.iter_mut().for_each(|sum| *sum /= pixels as f32);
    }
    vectors
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn add_bias(x: &mut [f32], bias: &[f32]) {
    for row in x.chunks_exact_mut(bias.len()) {
        row.iter_mut().zip(bias).for_each(|(x, bias)| *x += bias);
    }
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn relu(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = x.max(0.0));
}

#[multiversion(targets("x86_64+avx512f", "x86_64+avx2"))]
fn larger(out: &mut [f32], x: &[f32]) {
    out.iter_mut().zip(x).for_each(|(out, x)| *out = out.max(*x));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RngKey;
    use proptest::prelude::*;

    fn values(key: RngKey, stream: u64, count: usize) -> Vec<f32> {
        let key = key.fold_in_index(stream);
        (0..count as u64).map(|at| key.normal(at) as f32).collect()
    }

    fn drawn(key: RngKey, stream: u64, [inputs, outputs, side, stride]: [usize; 4]) -> InferenceConvolution {
        let kernel = values(key, stream, outputs * inputs * side * side);
        let kernel = kernel.iter().map(|value| value / ((inputs * side * side) as f32).sqrt()).collect();
        InferenceConvolution { kernel, bias: values(key, stream + 1, outputs), inputs, side, stride }
    }

    /// Maps of one image, `[channels][height][width]`.
    type Planes = Vec<Vec<Vec<f64>>>;

    fn at(planes: &[Vec<f64>], y: isize, x: isize) -> f64 {
        let row = usize::try_from(y).ok().and_then(|y| planes.get(y));
        row.and_then(|row| usize::try_from(x).ok().and_then(|x| row.get(x))).copied().unwrap_or(0.0)
    }

    /// The convolution by its definition: each output is the sum over all inputs of its window.
    fn convolved(x: &Planes, convolution: &InferenceConvolution) -> Planes {
        let InferenceConvolution { kernel, bias, side, stride, .. } = convolution;
        let (side, padding) = (*side as isize, (*side / 2) as isize);
        let along = x[0].len().div_ceil(*stride);
        let pixel = |output: usize, row: usize, column: usize| {
            let mut sum = f64::from(bias[output]);
            for (input, plane) in x.iter().enumerate() {
                for down in 0..side {
                    for right in 0..side {
                        let weight =
                            kernel[((output * x.len() + input) as isize * side * side + down * side + right) as usize];
                        let y = (row * stride) as isize + down - padding;
                        sum += f64::from(weight) * at(plane, y, (column * stride) as isize + right - padding);
                    }
                }
            }
            sum
        };
        let row = |output, row| (0..along).map(|column| pixel(output, row, column)).collect();
        (0..bias.len()).map(|output| (0..along).map(|y| row(output, y)).collect()).collect()
    }

    fn mapped(x: &Planes, map: impl Fn(usize, usize, usize, f64) -> f64) -> Planes {
        let row = |c: usize, y: usize, row: &Vec<f64>| row.iter().enumerate().map(|(i, &v)| map(c, y, i, v)).collect();
        let plane = |c: usize, plane: &Vec<Vec<f64>>| plane.iter().enumerate().map(|(y, r)| row(c, y, r)).collect();
        x.iter().enumerate().map(|(c, p)| plane(c, p)).collect()
    }

    fn relu_of(x: &Planes) -> Planes {
        mapped(x, |_, _, _, value| value.max(0.0))
    }

    fn pooled(x: &Planes) -> Planes {
        let along = x[0].len().div_ceil(2);
        let window = |plane: &[Vec<f64>], y: usize, column: usize| {
            let near = |first: usize| (0..3).map(move |step| (2 * first + step) as isize - 1);
            near(y).flat_map(|y| near(column).map(move |x| (y, x))).map(|(y, x)| at(plane, y, x)).fold(0.0, f64::max)
        };
        let plane = |plane: &Vec<Vec<f64>>| {
            (0..along).map(|y| (0..along).map(|column| window(plane, y, column)).collect()).collect()
        };
        x.iter().map(plane).collect()
    }

    fn by_definition(stem: &InferenceConvolution, layers: &[InferenceBottleneck], image: &Planes) -> Vec<f64> {
        let mut x = pooled(&relu_of(&convolved(image, stem)));
        for InferenceBottleneck { inside: [down, middle, up], shortcut } in layers {
            let inside = relu_of(&convolved(&relu_of(&convolved(&x, down)), middle));
            let inside = convolved(&inside, up);
            let beside = shortcut.as_ref().map_or_else(|| x.clone(), |shortcut| convolved(&x, shortcut));
            x = relu_of(&mapped(&inside, |channel, y, column, value| value + beside[channel][y][column]));
        }
        let mean = |plane: &Vec<Vec<f64>>| {
            let pixels = plane.concat();
            pixels.iter().sum::<f64>() / pixels.len() as f64
        };
        x.iter().map(mean).collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn the_network_agrees_with_loops_over_windows(
            seed: u64, side in 1usize..14, images in 1usize..4, stem_side in 0usize..4, stride in 1usize..3,
        ) {
            let key = RngKey::new(seed);
            let stem = drawn(key, 0, [COLOURS, 5, 2 * stem_side + 1, 2]);
            let bottleneck = |stream, [inputs, inside, outputs]: [usize; 3], stride, has_shortcut: bool| InferenceBottleneck {
                inside: [
                    drawn(key, stream, [inputs, inside, 1, 1]),
                    drawn(key, stream + 2, [inside, inside, 3, stride]),
                    drawn(key, stream + 4, [inside, outputs, 1, 1]),
                ],
                shortcut: has_shortcut.then(|| drawn(key, stream + 6, [inputs, outputs, 1, stride])),
            };
            let layers = [bottleneck(10, [5, 3, 6], stride, true), bottleneck(20, [6, 4, 6], 1, false)];
            let pixels = values(key, 99, images * COLOURS * side * side);
            let network = InferenceResNet::new(stem.clone(), layers.to_vec(), Precision::F32).unwrap();
            let vectors = network.embed_images(&pixels, side);
            prop_assert_eq!(vectors.len(), images * 6);
            for (image, vector) in pixels.chunks_exact(COLOURS * side * side).zip(vectors.chunks_exact(6)) {
                let row = |row: &[f32]| row.iter().map(|&pixel| f64::from(pixel)).collect::<Vec<_>>();
                let plane = |plane: &[f32]| plane.chunks_exact(side).map(row).collect::<Vec<_>>();
                let planes = image.chunks_exact(side * side).map(plane).collect();
                for (value, expected) in vector.iter().zip(by_definition(&stem, &layers, &planes)) {
                    prop_assert!((f64::from(*value) - expected).abs() < 1e-4 * (1.0 + expected.abs()), "{value} {expected}");
                }
            }
        }
    }

    #[test]
    fn layers_that_do_not_fit_are_refused() {
        let key = RngKey::new(1);
        let stem = drawn(key, 0, [COLOURS, 4, 3, 2]);
        let inside = || [drawn(key, 1, [4, 2, 1, 1]), drawn(key, 2, [2, 2, 3, 2]), drawn(key, 3, [2, 4, 1, 1])];
        let refusal = |inside, shortcut| {
            InferenceResNet::new(stem.clone(), vec![InferenceBottleneck { inside, shortcut }], Precision::F32).err()
        };
        assert!(refusal(inside(), None).is_some(), "the input is larger than what is added to it");
        assert!(refusal(inside(), Some(drawn(key, 4, [4, 5, 1, 2]))).is_some(), "five channels on four");
        let [down, _, up] = inside();
        assert!(refusal([down, drawn(key, 5, [3, 2, 3, 1]), up], None).is_some(), "two channels into three");
        assert!(refusal(inside(), Some(drawn(key, 6, [4, 4, 1, 2]))).is_none());
    }
}
