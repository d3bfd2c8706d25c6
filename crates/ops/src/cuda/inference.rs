//! Encoders with fixed weights on a GPU: packed sequences, no gradient. The CPU's implementation is [`crate::inference`].
//!
//! Residual sums, LayerNorm and softmax are f32. The inputs of products are f32, or bf16 if products are computed from bf16. The memory
//! between the layers is kept between calls.

use std::sync::{Mutex, PoisonError};

use candle_core::cuda_backend::CudaDevice;
use candle_core::cuda_backend::cudarc::driver::CudaSlice;
use candle_core::{Result, bail};

use super::gpu::{DevicePointer, Factor, Floats, Gpu, LargeUploads, LaunchGrid, Matrix, arguments, device_pointer};
use crate::{
    Activation, EncoderInput, EncoderParts, InferenceLinear, InferenceNorm, InferenceShape, InferenceTransformer,
    Precision, Readout,
};

/// The widest head that the kernels of attention take.
const WIDEST_HEAD: usize = 128;

/// The widest token that the kernels of LayerNorm take.
const WIDEST: usize = 4096;

/// The numbers of a row's values that a lane may hold in the kernels of LayerNorm.
const LANES: [usize; 8] = [4, 8, 12, 16, 24, 32, 64, 128];

/// The threads of a block, each for a column or for four, in kernels whose blocks belong to one row.
const COLUMNS: usize = 256;

struct Linear {
    weight: Factor,
    bias: Floats,
    inputs: usize,
    outputs: usize,
}

impl Linear {
    fn new(gpu: &Gpu, linear: &InferenceLinear, precision: Precision) -> Result<Self> {
        let weight = gpu.upload(&linear.weight)?;
        let weight = if precision == Precision::Bf16 {
            Factor::Half(gpu.halves(device_pointer(&weight), linear.weight.len())?)
        } else {
            Factor::Single(weight)
        };
        let (inputs, outputs) = (linear.inputs(), linear.outputs());
        Ok(Self { weight, bias: gpu.upload(&linear.bias)?, inputs, outputs })
    }

    /// x W without the bias, as the input of another product.
    fn product_to(&self, gpu: &Gpu, out: &Factor, x: Matrix, precision: Precision) -> Result<()> {
        gpu.product_to(out, x, self.weight.matrix(self.inputs, self.outputs), precision)
    }

    /// x W without the bias, `[rows, out]` of f32.
    fn product(&self, gpu: &Gpu, x: Matrix, rows: usize, precision: Precision) -> Result<Floats> {
        let out = gpu.allocate::<f32>(rows * self.outputs)?;
        let weight = self.weight.matrix(self.inputs, self.outputs);
        gpu.product(device_pointer(&out), x, weight, false, precision)?;
        Ok(out)
    }
}

struct Norm {
    weight: Floats,
    bias: Floats,
}

impl Norm {
    fn new(gpu: &Gpu, norm: &InferenceNorm, width: usize) -> Result<Self> {
        if norm.weight.len() != width || norm.bias.len() != width {
            bail!("LayerNorm of {} and {} values: expected {width}", norm.weight.len(), norm.bias.len());
        }
        Ok(Self { weight: gpu.upload(&norm.weight)?, bias: gpu.upload(&norm.bias)? })
    }
}

struct Layer {
    qkv: Linear,
    out: Linear,
    attention_norm: Norm,
    up: Linear,
    down: Linear,
    feed_norm: Norm,
}

/// The memory between the layers, for calls of up to `tokens` tokens.
struct Room {
    tokens: usize,
    /// The residual sums, `[tokens, d]`.
    x: Floats,
    /// The input of the next product, `[tokens, d]`.
    input: Factor,
    /// The queries, keys and values, `[tokens, 3 d]`.
    qkv: Factor,
    /// The result of a branch, `[tokens, d]`.
    branch: Factor,
    /// The hidden values of the feed-forward block, `[tokens, width of the block]`.
    up: Factor,
}

/// A stack on a GPU.
pub(crate) struct GpuTransformer {
    gpu: Gpu,
    precision: Precision,
    shape: InferenceShape,
    layers: Vec<Layer>,
    /// The bias of attention scores by head and distance, and the largest distance.
    relative: Option<(Floats, usize)>,
    /// The width of the widest feed-forward block.
    hidden: usize,
    room: Mutex<Option<Room>>,
}

impl std::fmt::Debug for GpuTransformer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuTransformer").field("shape", &self.shape).finish_non_exhaustive()
    }
}

impl GpuTransformer {
    pub fn new(stack: &InferenceTransformer, device: &CudaDevice, precision: Precision) -> Result<Self> {
        let gpu = Gpu::of(device)?;
        let InferenceShape { width: d, heads, .. } = stack.shape;
        if d == 0 || heads == 0 || !d.is_multiple_of(heads) || d > WIDEST || d / heads > WIDEST_HEAD {
            bail!(
                "{heads} heads of tokens of width {d}: on a GPU, tokens may be up to {WIDEST} and heads up to {WIDEST_HEAD} wide; \
                 use the CPU"
            );
        }
        let layers = stack.layers.iter().map(|layer| {
            let linear = |linear: &InferenceLinear, inputs: usize, outputs: usize| {
                if linear.inputs() != inputs || linear.outputs() != outputs {
                    let found = (linear.inputs(), linear.outputs());
                    bail!("a map of {found:?}: expected {:?}", (inputs, outputs));
                }
                Linear::new(&gpu, linear, precision)
            };
            let hidden = layer.up.outputs();
            Ok(Layer {
                qkv: linear(&layer.qkv, d, 3 * d)?,
                out: linear(&layer.out, d, d)?,
                attention_norm: Norm::new(&gpu, &layer.attention_norm, d)?,
                up: linear(&layer.up, d, hidden)?,
                down: linear(&layer.down, hidden, d)?,
                feed_norm: Norm::new(&gpu, &layer.feed_norm, d)?,
            })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let relative = stack.bias.as_ref().map(|bias| {
            if bias.values.len() != heads * (2 * bias.reach + 1) {
                bail!("biases by distance: {} values for {heads} heads", bias.values.len());
            }
            Ok((gpu.upload(&bias.values)?, bias.reach))
        });
        Ok(Self {
            relative: relative.transpose()?,
            hidden: layers.iter().map(|layer| layer.up.outputs).max().unwrap_or(0),
            shape: stack.shape,
            room: Mutex::new(None),
            layers,
            precision,
            gpu,
        })
    }

    /// Calls `work` with memory for `tokens` tokens. Concurrent calls wait for each other.
    fn with_room<T>(&self, tokens: usize, work: impl FnOnce(&Room) -> Result<T>) -> Result<T> {
        let mut kept = self.room.lock().unwrap_or_else(PoisonError::into_inner);
        // Memory that is too small is freed before more is allocated.
        let earlier = kept.take().filter(|room| room.tokens >= tokens);
        let room = match earlier {
            Some(room) => room,
            None => self.room_for(tokens)?,
        };
        let result = work(&room);
        *kept = Some(room);
        result
    }

    fn room_for(&self, tokens: usize) -> Result<Room> {
        let d = self.shape.width;
        let factor = |width: usize| self.gpu.factor(tokens * width, self.precision);
        Ok(Room {
            tokens,
            x: self.gpu.allocate(tokens * d)?,
            input: factor(d)?,
            qkv: factor(3 * d)?,
            branch: factor(d)?,
            up: factor(self.hidden)?,
        })
    }

    pub fn forward(&self, x: &mut [f32], lengths: &[usize]) -> Result<()> {
        let tokens = lengths.iter().sum::<usize>();
        if x.len() != tokens * self.shape.width {
            bail!("{} values: expected {tokens} tokens of width {}", x.len(), self.shape.width);
        }
        if tokens == 0 {
            return Ok(());
        }
        let gpu = &self.gpu;
        self.with_room(tokens, |room| {
            let uploaded = gpu.upload(x)?;
            gpu.launch("copy", LaunchGrid::threads(x.len()), arguments![&room.x, &uploaded, x.len()])?;
            self.layers(room, lengths)?;
            x.copy_from_slice(&gpu.device().clone_dtoh(&room.x.slice(..x.len()))?);
            Ok(())
        })
    }

    /// Computes the layers over the tokens in `room.x`.
    fn layers(&self, room: &Room, lengths: &[usize]) -> Result<()> {
        let gpu = &self.gpu;
        let InferenceShape { width: d, norm_first, activation, .. } = self.shape;
        let tokens = lengths.iter().sum::<usize>();
        let Some(first) = self.layers.first() else { return Ok(()) };
        if norm_first {
            self.residual(room, tokens, None, Some(&first.attention_norm))?;
        } else if self.precision == Precision::Bf16 {
            let count = tokens * d;
            gpu.launch("to_bf16", LaunchGrid::threads(count.div_ceil(4)), arguments![room.input.at(), &room.x, count])?;
        }
        // Without rounding, products read the sums after LayerNorm.
        let reads_sums = !norm_first && self.precision != Precision::Bf16;
        let input =
            if reads_sums { Matrix::new(device_pointer(&room.x), tokens, d) } else { room.input.matrix(tokens, d) };
        let tiles = Tiles::new(gpu, lengths)?;
        let mut layers = self.layers.iter().peekable();
        while let Some(layer) = layers.next() {
            layer.qkv.product_to(gpu, &room.qkv, input, self.precision)?;
            self.attend(room, &tiles, &layer.qkv.bias)?;
            layer.out.product_to(gpu, &room.branch, room.input.matrix(tokens, d), self.precision)?;
            let norm = if norm_first { &layer.feed_norm } else { &layer.attention_norm };
            self.residual(room, tokens, Some(&layer.out.bias), Some(norm))?;
            layer.up.product_to(gpu, &room.up, input, self.precision)?;
            let hidden = layer.up.outputs;
            gpu.launch(
                &format!("activate_{}", room.up.suffix()),
                LaunchGrid::blocks(tokens, hidden.div_ceil(4 * COLUMNS)),
                arguments![room.up.at(), &layer.up.bias, hidden, activation == Activation::QuickGelu],
            )?;
            layer.down.product_to(gpu, &room.branch, room.up.matrix(tokens, hidden), self.precision)?;
            let next = layers.peek().map(|next| &next.attention_norm);
            let norm = if norm_first { next } else { Some(&layer.feed_norm) };
            self.residual(room, tokens, Some(&layer.down.bias), norm)?;
        }
        Ok(())
    }

    /// Adds a branch with its bias to the sums and normalises them for the next product.
    fn residual(&self, room: &Room, rows: usize, branch_bias: Option<&Floats>, norm: Option<&Norm>) -> Result<()> {
        let is_separate = self.shape.norm_first || self.precision == Precision::Bf16;
        let input = if is_separate { room.input.at() } else { DevicePointer::NONE };
        let branch = branch_bias.map_or(DevicePointer::NONE, |_| room.branch.at());
        let branch_bias = branch_bias.map_or(DevicePointer::NONE, device_pointer);
        let (weight, bias) = norm.map_or((DevicePointer::NONE, DevicePointer::NONE), |n| {
            (device_pointer(&n.weight), device_pointer(&n.bias))
        });
        let InferenceShape { width: d, eps, norm_first, .. } = self.shape;
        let name = format!("residual_norm_{}_{}", lanes(d), room.branch.suffix());
        let all = arguments![&room.x, input, branch, branch_bias, weight, bias, eps, rows, d, norm_first];
        self.gpu.launch(&name, LaunchGrid::warps(rows), all)
    }

    /// Applies LayerNorm to the rows `x` `[rows, d]` in place.
    fn normalise(&self, x: DevicePointer, rows: usize, norm: &Norm) -> Result<()> {
        let InferenceShape { width: d, eps, .. } = self.shape;
        let none = DevicePointer::NONE;
        let all = arguments![x, none, none, none, &norm.weight, &norm.bias, eps, rows, d, false];
        self.gpu.launch(&format!("residual_norm_{}_f32", lanes(d)), LaunchGrid::warps(rows), all)
    }

    /// Computes the heads' outputs side by side, from `room.qkv` to `room.input`.
    fn attend(&self, room: &Room, tiles: &Tiles, bias: &Floats) -> Result<()> {
        let InferenceShape { width: d, heads, causal, .. } = self.shape;
        let (width, rows) = ((d / heads).next_power_of_two().max(32), tiles.rows);
        let shared = size_of::<f32>() * (2 * rows * (width + 4) + rows * (rows + 4));
        let grid = LaunchGrid { blocks: (tiles.count, heads), threads: (rows * rows / 16, 1), shared };
        let (relative, reach) = match &self.relative {
            Some((values, reach)) => (device_pointer(values), *reach),
            None => (DevicePointer::NONE, 0),
        };
        let all = arguments![room.input.at(), room.qkv.at(), bias, &tiles.uploaded, relative, reach, d, heads, causal,];
        self.gpu.launch(&format!("attend_{width}_{rows}_{}", room.qkv.suffix()), grid, all)
    }
}

/// The smallest number of values per lane whose kernel takes rows of width `d`.
fn lanes(d: usize) -> usize {
    LANES.into_iter().find(|lanes| 32 * lanes >= d).unwrap_or(WIDEST / 32)
}

/// The work of every block of attention: some queries of a sequence.
struct Tiles {
    /// The largest number of queries in a block.
    rows: usize,
    count: usize,
    /// For each, the sequence's first token, its length, and the first query.
    uploaded: CudaSlice<u32>,
}

impl Tiles {
    fn new(gpu: &Gpu, lengths: &[usize]) -> Result<Self> {
        let longest = lengths.iter().copied().max().unwrap_or(0);
        let rows = if longest <= 32 { 32 } else { 64 };
        let (mut tiles, mut first) = (Vec::new(), 0);
        for &length in lengths {
            for start in (0..length).step_by(rows) {
                tiles.extend([first as u32, length as u32, start as u32]);
            }
            first += length;
        }
        Ok(Self { rows, count: tiles.len() / 3, uploaded: gpu.upload(&tiles)? })
    }
}

enum Input {
    Tokens { table: Floats, vocabulary: usize, segment: Option<Floats> },
    Images { patches: Linear, class: Floats, side: usize, patch: usize, staging: LargeUploads },
}

/// An encoder on a GPU.
pub(crate) struct GpuEncoder {
    stack: GpuTransformer,
    input: Input,
    positions: Floats,
    /// The number of rows of `positions`.
    position_rows: usize,
    norm: Option<Norm>,
    output: Option<(Norm, Linear)>,
}

impl std::fmt::Debug for GpuEncoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GpuEncoder").field("stack", &self.stack).finish_non_exhaustive()
    }
}

impl GpuEncoder {
    pub fn new(parts: EncoderParts<'_>, device: &CudaDevice, precision: Precision) -> Result<Self> {
        let stack = GpuTransformer::new(parts.stack, device, precision)?;
        let (gpu, d) = (&stack.gpu, parts.stack.shape.width);
        let row = |values: &[f32]| if values.len() == d { gpu.upload(values) } else { bail!("expected {d} values") };
        let input = match parts.input {
            EncoderInput::Tokens { table, segment } => Input::Tokens {
                table: gpu.upload(table)?,
                vocabulary: table.len() / d,
                segment: segment.map(row).transpose()?,
            },
            EncoderInput::Images { patches, class, side, patch } => {
                let position_rows = parts.positions.len() / d;
                let is_whole = patch > 0 && position_rows == (side / patch).pow(2) + 1;
                if !is_whole || patches.inputs() != 3 * patch * patch || patches.outputs() != d {
                    bail!("patches of {patch} of {side} pixels do not fit {position_rows} positions");
                }
                Input::Images {
                    patches: Linear::new(gpu, patches, precision)?,
                    class: row(class)?,
                    side,
                    patch,
                    staging: LargeUploads::default(),
                }
            }
        };
        let output = parts.output.map(|(norm, projection)| {
            if projection.inputs() != d {
                bail!("a projection of {} values: expected {d}", projection.inputs());
            }
            Ok((Norm::new(gpu, norm, d)?, Linear::new(gpu, projection, precision)?))
        });
        Ok(Self {
            input,
            positions: gpu.upload(parts.positions)?,
            position_rows: parts.positions.len() / d,
            norm: parts.norm.map(|norm| Norm::new(gpu, norm, d)).transpose()?,
            output: output.transpose()?,
            stack,
        })
    }

    /// The width of a vector.
    fn width(&self) -> usize {
        self.output.as_ref().map_or(self.stack.shape.width, |(_, projection)| projection.outputs)
    }

    pub fn embed_tokens(
        &self,
        tokens: &[u32],
        positions: &[u32],
        lengths: &[usize],
        readout: Readout<'_>,
    ) -> Result<Vec<f32>> {
        let Input::Tokens { table, vocabulary, segment } = &self.input else {
            bail!("an encoder of images got tokens")
        };
        let count = lengths.iter().sum::<usize>();
        let is_within = |numbers: &[u32], rows: usize| numbers.iter().all(|&number| (number as usize) < rows);
        if tokens.len() != count || positions.len() != count {
            bail!("{} tokens and {} positions: expected {count}", tokens.len(), positions.len());
        }
        if !is_within(tokens, *vocabulary) || !is_within(positions, self.position_rows) {
            bail!("a token from {vocabulary} on or a position from {} on", self.position_rows);
        }
        if let Readout::Rows(rows) = readout
            && (rows.len() != lengths.len() || !is_within(rows, count))
        {
            bail!("{} rows to read of {count}: expected {}", rows.len(), lengths.len());
        }
        if count == 0 {
            return Ok(vec![0.0; lengths.len() * self.width()]);
        }
        let (gpu, d) = (&self.stack.gpu, self.stack.shape.width);
        self.stack.with_room(count, |room| {
            let (tokens, positions) = (gpu.upload(tokens)?, gpu.upload(positions)?);
            let segment = segment.as_ref().map_or(DevicePointer::NONE, device_pointer);
            let all = arguments![&room.x, table, segment, &self.positions, &tokens, &positions, count, d];
            gpu.launch("token_sums", LaunchGrid::warps(count), all)?;
            self.finish(room, lengths, readout)
        })
    }

    pub fn embed_images(&self, pixels: &[f32]) -> Result<Vec<f32>> {
        let Input::Images { patches, class, side, patch, staging } = &self.input else {
            bail!("an encoder of tokens got images")
        };
        let images = pixels.len() / (3 * side * side);
        if pixels.len() != images * 3 * side * side {
            bail!("{} values: expected images of {side} by {side} pixels", pixels.len());
        }
        if images == 0 {
            return Ok(Vec::new());
        }
        let (gpu, d, precision) = (&self.stack.gpu, self.stack.shape.width, self.stack.precision);
        let count = self.position_rows - 1;
        let lengths = vec![count + 1; images];
        let classes: Vec<u32> = (0..images).map(|image| (image * (count + 1)) as u32).collect();
        self.stack.with_room(images * (count + 1), |room| {
            let cut = gpu.factor(images * count * patches.inputs, precision)?;
            let uploaded = staging.upload(gpu, pixels)?;
            let grid = LaunchGrid::blocks(images * count, patches.inputs.div_ceil(COLUMNS));
            gpu.launch(&format!("cut_patches_{}", cut.suffix()), grid, arguments![cut.at(), &uploaded, *side, *patch])?;
            let rows = images * count;
            let of_patches = patches.product(gpu, cut.matrix(rows, patches.inputs), rows, precision)?;
            let tokens = images * (count + 1);
            let all = arguments![&room.x, &of_patches, class, &self.positions, tokens, count, d];
            gpu.launch("image_tokens", LaunchGrid::warps(tokens), all)?;
            self.finish(room, &lengths, Readout::Rows(&classes))
        })
    }

    /// Computes the vectors from the tokens in `room.x`, and downloads them.
    fn finish(&self, room: &Room, lengths: &[usize], readout: Readout<'_>) -> Result<Vec<f32>> {
        let (gpu, d, sequences) = (&self.stack.gpu, self.stack.shape.width, lengths.len());
        if let Some(norm) = &self.norm {
            self.stack.normalise(device_pointer(&room.x), lengths.iter().sum(), norm)?;
        }
        self.stack.layers(room, lengths)?;
        let out = gpu.allocate::<f32>(sequences * d)?;
        let pool = |mode: u32| {
            let mut offsets = vec![0];
            offsets.extend(lengths.iter().scan(0, |end, &length| {
                *end += length as u32;
                Some(*end)
            }));
            let offsets = gpu.upload(&offsets)?;
            let grid = LaunchGrid::blocks(sequences, d.div_ceil(COLUMNS));
            gpu.launch("pool_tokens", grid, arguments![&out, &room.x, &offsets, d, mode])
        };
        match readout {
            Readout::Mean => pool(0)?,
            Readout::First => pool(1)?,
            Readout::Max => pool(2)?,
            Readout::Rows(rows) => {
                let rows = gpu.upload(rows)?;
                gpu.launch(
                    "gather_rows",
                    LaunchGrid::warps(sequences),
                    arguments![&out, &room.x, &rows, sequences, d],
                )?;
            }
        }
        let Some((norm, projection)) = &self.output else { return gpu.device().clone_dtoh(&out) };
        self.stack.normalise(device_pointer(&out), sequences, norm)?;
        let rows = Matrix::new(device_pointer(&out), sequences, d);
        gpu.device().clone_dtoh(&projection.product(gpu, rows, sequences, self.stack.precision)?)
    }
}
