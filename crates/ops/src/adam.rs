//! Adam over all parameters of a phase, with clipping of the gradient norm.

use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Tensor, Var};
use rayon::prelude::*;

use crate::ProcessGroup;
use crate::fused::with_slices;

/// Adam with coupled L2 weight decay and clipping of the joint gradient norm (Kingma and Ba 2015; specification, section 7).
///
/// A parameter without a gradient is not changed, not even by decay.
#[derive(Clone, Debug)]
pub struct Adam {
    /// The learning rate.
    pub learning_rate: f64,
    /// The factor with which a parameter is added to its gradient.
    pub weight_decay: f64,
    /// The value at which the joint norm of all gradients is clipped.
    pub clip_norm: f64,
    /// The number of steps taken by each parameter.
    steps: Vec<u64>,
    moments: Moments,
    /// The number of values of each parameter.
    lengths: Vec<usize>,
}

/// First and second moments, on the device of the parameters.
#[derive(Clone, Debug)]
enum Moments {
    Host {
        first: Vec<Vec<f32>>,
        second: Vec<Vec<f32>>,
    },
    #[cfg(feature = "cuda")]
    Gpu(crate::cuda::GpuMoments),
}

/// A step that was taken, or that may still be under way on a GPU.
#[derive(Debug)]
pub struct Pending {
    /// The parameters with a gradient.
    stepped: Vec<usize>,
    outcome: PendingOutcome,
}

#[derive(Debug)]
enum PendingOutcome {
    Known(StepOutcome),
    #[cfg(feature = "cuda")]
    Gpu(crate::cuda::GpuStepOutcome),
}

/// The outcome of a step. If either value is not finite, the step changed nothing.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepOutcome {
    /// The joint norm of the gradients before clipping.
    pub norm: f64,
    /// The loss.
    pub loss: f32,
}

impl Pending {
    /// Whether the outcome is already known.
    pub fn is_known(&self) -> bool {
        matches!(self.outcome, PendingOutcome::Known(_))
    }
}

impl StepOutcome {
    /// Whether the step changed the parameters.
    pub fn is_finite(self) -> bool {
        self.norm.is_finite() && self.loss.is_finite()
    }
}

/// The state of Adam between steps, in the order of the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdamState {
    /// The number of steps taken by each parameter.
    pub steps: Vec<u64>,
    /// First moments.
    pub first: Vec<Vec<f32>>,
    /// Second moments.
    pub second: Vec<Vec<f32>>,
}

const BETA_1: f64 = 0.9;
const BETA_2: f64 = 0.999;
const EPS: f64 = 1e-8;

impl Adam {
    /// Starts with moments of zero for `parameters`, which must be on one device.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = &'a Var>,
        learning_rate: f64,
        weight_decay: f64,
        clip_norm: f64,
    ) -> Result<Self> {
        let parameters: Vec<&Tensor> = parameters.into_iter().map(Var::as_tensor).collect();
        let lengths: Vec<usize> = parameters.iter().map(|p| p.elem_count()).collect();
        let zeros: Vec<Vec<f32>> = lengths.iter().map(|&length| vec![0.0; length]).collect();
        let moments = match parameters.first() {
            #[cfg(feature = "cuda")]
            Some(first) if first.device().is_cuda() => {
                Moments::Gpu(crate::cuda::GpuMoments::new(first, &zeros, &zeros)?)
            }
            _ => Moments::Host { first: zeros.clone(), second: zeros },
        };
        Ok(Self { learning_rate, weight_decay, clip_norm, steps: vec![0; lengths.len()], moments, lengths })
    }

    /// The moments and step counts, for storage.
    pub fn state(&self) -> Result<AdamState> {
        let (first, second) = match &self.moments {
            Moments::Host { first, second } => (first.clone(), second.clone()),
            #[cfg(feature = "cuda")]
            Moments::Gpu(moments) => {
                let [first, second] = moments.values(&self.lengths)?;
                (first, second)
            }
        };
        Ok(AdamState { steps: self.steps.clone(), first, second })
    }

    /// Continues from stored moments.
    pub fn restore(&mut self, state: AdamState) -> Result<()> {
        let lengths = |moments: &[Vec<f32>]| moments.iter().map(Vec::len).collect::<Vec<_>>();
        let fits = lengths(&state.first) == self.lengths && lengths(&state.second) == self.lengths;
        if !fits || state.steps.len() != self.steps.len() {
            candle_core::bail!("the optimiser's state does not fit the parameters");
        }
        self.steps = state.steps;
        match &mut self.moments {
            Moments::Host { first, second } => (*first, *second) = (state.first, state.second),
            #[cfg(feature = "cuda")]
            Moments::Gpu(moments) => *moments = moments.replaced(&state.first, &state.second)?,
        }
        Ok(())
    }

    /// Takes one step, unless the loss or the joint norm of the gradients is not finite. `parameters` must be in the order given to
    /// [`Adam::new`]. On a GPU, the step may still be under way when this returns; [`Adam::finish`] waits for it.
    pub fn step<'a>(
        &mut self,
        parameters: impl IntoIterator<Item = &'a Var>,
        gradients: &GradStore,
        loss: &Tensor,
    ) -> Result<Pending> {
        let mut found = Vec::new();
        for (at, parameter) in parameters.into_iter().enumerate() {
            if let Some(gradient) = gradients.get(parameter.as_tensor()) {
                found.push((at, parameter.as_tensor(), gradient.contiguous()?));
            }
        }
        let stepped: Vec<usize> = found.iter().map(|(at, ..)| *at).collect();
        let rates = self.rates();
        stepped.iter().for_each(|&at| self.steps[at] += 1);
        let update = |at: usize| Update::after(self.steps[at], self.learning_rate);
        let outcome = match &mut self.moments {
            Moments::Host { first, second } => {
                let mut moments: Vec<_> = first.iter_mut().zip(second).map(Some).collect();
                let stepping = found.iter().filter_map(|(at, parameter, gradient)| {
                    let (first, second) = moments[*at].take()?;
                    Some(HostStep { parameter, gradient, update: update(*at), counts: true, first, second })
                });
                PendingOutcome::Known(step_on_host(stepping.collect(), rates, loss.to_scalar()?, 0.0)?)
            }
            #[cfg(feature = "cuda")]
            Moments::Gpu(moments) => {
                let stepping = found.into_iter().map(|(at, parameter, gradient)| crate::cuda::Stepping {
                    at,
                    parameter,
                    gradient,
                    update: update(at),
                });
                PendingOutcome::Gpu(moments.step(&stepping.collect::<Vec<_>>(), loss, rates)?)
            }
        };
        Ok(Pending { stepped, outcome })
    }

    /// Takes one step of a group of processes, whose losses and gradients are added up. The flag of a parameter says whether it is a shard:
    /// every process then has its own rows, whose gradient is complete. All other parameters are the same on all processes and remain so.
    /// The norm is that of the whole gradient, in which every value counts once.
    pub fn step_in_group<'a>(
        &mut self,
        group: &ProcessGroup,
        parameters: impl IntoIterator<Item = (&'a Var, bool)>,
        gradients: &GradStore,
        loss: &Tensor,
    ) -> Result<Pending> {
        let mut found = Vec::new();
        for (at, (parameter, is_shard)) in parameters.into_iter().enumerate() {
            if let Some(gradient) = gradients.get(parameter.as_tensor()) {
                found.push((at, parameter.as_tensor(), gradient.contiguous()?, is_shard));
            }
        }
        let mut flat = Vec::new();
        for (_, _, gradient, _) in found.iter().filter(|(.., is_shard)| !is_shard) {
            with_slices([gradient], |[gradient]| {
                flat.extend_from_slice(gradient);
                Ok(())
            })?;
        }
        let flat = group.all_reduce("shared gradients", &flat)?;
        let (mut start, mut shard_square) = (0, 0.0);
        for (_, parameter, gradient, is_shard) in &mut found {
            if *is_shard {
                shard_square += with_slices([&*gradient], |[gradient]| Ok(sum_of_squares(gradient)))?;
            } else {
                let end = start + parameter.elem_count();
                *gradient = Tensor::from_slice(&flat[start..end], parameter.shape(), parameter.device())?;
                start = end;
            }
        }
        let all = group.scalars(&[f64::from(loss.to_scalar::<f32>()?), shard_square])?;
        let (loss, shard_squares) = all.iter().fold((0.0, 0.0), |(loss, square), of| (loss + of[0], square + of[1]));
        found.iter().for_each(|(at, ..)| self.steps[*at] += 1);
        let (rates, stepped) = (self.rates(), found.iter().map(|(at, ..)| *at).collect());
        let update = |at: usize| Update::after(self.steps[at], self.learning_rate);
        let (first, second) = match &mut self.moments {
            Moments::Host { first, second } => (first, second),
            #[cfg(feature = "cuda")]
            Moments::Gpu(_) => candle_core::bail!("a group of processes trains on the CPU"),
        };
        let mut moments: Vec<_> = first.iter_mut().zip(second).map(Some).collect();
        let stepping = found.iter().filter_map(|(at, parameter, gradient, is_shard)| {
            let (first, second) = moments[*at].take()?;
            let (update, counts) = (update(*at), !is_shard);
            Some(HostStep { parameter, gradient, update, counts, first, second })
        });
        let outcome = step_on_host(stepping.collect(), rates, loss as f32, shard_squares)?;
        Ok(Pending { stepped, outcome: PendingOutcome::Known(outcome) })
    }

    fn rates(&self) -> Rates {
        Rates {
            clip_norm: self.clip_norm,
            decay: self.weight_decay as f32,
            // Subtracted in double precision: in single precision, 1 - 0.999 has a relative error of 1.3e-5.
            fresh_1: (1.0 - BETA_1) as f32,
            fresh_2: (1.0 - BETA_2) as f32,
        }
    }

    /// Waits for a step and returns its outcome. On a GPU, a step that is not finite also keeps the steps after it from changing anything.
    pub fn finish(&mut self, pending: &Pending) -> Result<StepOutcome> {
        let (outcome, applied) = match &pending.outcome {
            PendingOutcome::Known(outcome) => (*outcome, outcome.is_finite()),
            #[cfg(feature = "cuda")]
            PendingOutcome::Gpu(outcome) => {
                let [norm, loss, applied] = outcome.wait()?;
                (StepOutcome { norm, loss: loss as f32 }, applied > 0.0)
            }
        };
        if !applied {
            pending.stepped.iter().for_each(|&at| self.steps[at] -= 1);
        }
        Ok(outcome)
    }
}

/// A parameter that takes a step on the host.
struct HostStep<'a> {
    parameter: &'a Tensor,
    gradient: &'a Tensor,
    update: Update,
    /// Whether its gradient still has to be added to the norm.
    counts: bool,
    first: &'a mut Vec<f32>,
    second: &'a mut Vec<f32>,
}

/// Takes a step on the host. `square` is the part of the squared norm that is not computed from `parameters` here.
fn step_on_host(parameters: Vec<HostStep<'_>>, rates: Rates, loss: f32, mut square: f64) -> Result<StepOutcome> {
    for HostStep { gradient, .. } in parameters.iter().filter(|parameter| parameter.counts) {
        square += with_slices([*gradient], |[gradient]| Ok(sum_of_squares(gradient)))?;
    }
    let outcome = StepOutcome { norm: f64::sqrt(square), loss };
    if !outcome.is_finite() {
        return Ok(outcome);
    }
    let clip = (rates.clip_norm / (outcome.norm + 1e-6)).min(1.0) as f32;
    for HostStep { parameter, gradient, update, first, second, .. } in parameters {
        with_slices([gradient], |[gradient]| {
            let moments = Mutex::new((&mut first[..], &mut second[..]));
            parameter.inplace_op1(&InPlace { update, rates, clip, gradient, moments })
        })?;
    }
    Ok(outcome)
}

/// The number of values in a parallel piece.
const PIECE: usize = 1 << 14;

/// The sum of squares in double precision; the sums of the pieces are added in order.
fn sum_of_squares(values: &[f32]) -> f64 {
    let piece = |values: &[f32]| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(piece).collect();
    pieces.iter().sum()
}

/// The values that all parameters of a step share.
#[derive(Clone, Copy)]
pub(crate) struct Rates {
    pub clip_norm: f64,
    pub decay: f32,
    /// 1 - beta_1 and 1 - beta_2.
    pub fresh_1: f32,
    pub fresh_2: f32,
}

/// The step size of a parameter and the root of its second moment's bias correction.
#[derive(Clone, Copy)]
pub(crate) struct Update {
    pub step_size: f32,
    pub second_root: f32,
}

impl Update {
    /// The corrections at a parameter's step number `step`, from 1.
    fn after(step: u64, learning_rate: f64) -> Self {
        let step = step as i32;
        Self {
            step_size: (learning_rate / (1.0 - BETA_1.powi(step))) as f32,
            second_root: (1.0 - BETA_2.powi(step)).sqrt() as f32,
        }
    }
}

/// The update of one parameter in place.
struct InPlace<'a> {
    update: Update,
    rates: Rates,
    clip: f32,
    gradient: &'a [f32],
    /// The first and second moments, behind a lock because candle passes its operators by shared reference.
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
}

impl InPlace<'_> {
    fn apply(&self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let (beta_1, beta_2) = (BETA_1 as f32, BETA_2 as f32);
        let moments = first.iter_mut().zip(second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = gradient * self.clip + self.rates.decay * *value;
            *first = beta_1 * *first + self.rates.fresh_1 * g;
            *second = beta_2 * *second + self.rates.fresh_2 * g * g;
            *value -= self.update.step_size * *first / (second.sqrt() / self.update.second_root + EPS as f32);
        }
    }
}

impl InplaceOp1 for InPlace<'_> {
    fn name(&self) -> &'static str {
        "adam"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> Result<()> {
        let CpuStorage::F32(values) = storage else { candle_core::bail!("adam: parameters must be f32") };
        let Some((start, end)) = layout.contiguous_offsets() else {
            candle_core::bail!("adam: parameters must be contiguous")
        };
        let mut moments = self.moments.lock().unwrap_or_else(PoisonError::into_inner);
        let (first, second) = &mut *moments;
        values[start..end]
            .par_chunks_mut(PIECE)
            .zip(self.gradient.par_chunks(PIECE))
            .zip(first.par_chunks_mut(PIECE).zip(second.par_chunks_mut(PIECE)))
            .for_each(|((values, gradient), (first, second))| self.apply(values, gradient, first, second));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    fn step(adam: &mut Adam, parameters: &[&Var], loss: &Tensor) -> StepOutcome {
        let pending = adam.step(parameters.iter().copied(), &loss.backward().unwrap(), loss).unwrap();
        adam.finish(&pending).unwrap()
    }

    /// The loss is 3 x, from x = 1 at the rate 0.1: in both steps, the bias-corrected ratio is g / (|g| + eps) = 1.
    #[test]
    fn two_steps_match_hand_computed_values() {
        let x = Var::from_tensor(&Tensor::new(&[1.0f32], &Device::Cpu).unwrap()).unwrap();
        let mut adam = Adam::new([&x], 0.1, 0.0, 1.0).unwrap();
        for expected in [0.9, 0.8] {
            let loss = (x.as_tensor() * 3.0).unwrap().sum_all().unwrap();
            let norm = step(&mut adam, &[&x], &loss).norm;
            assert!((norm - 3.0).abs() < 1e-9);
            let value = x.to_vec1::<f32>().unwrap()[0];
            assert!((value - expected).abs() < 1e-6, "{value}");
        }
    }

    #[test]
    fn decay_is_added_to_the_gradient_and_a_parameter_without_gradient_is_unchanged() {
        let var = |v: f32| Var::from_tensor(&Tensor::new(&[v], &Device::Cpu).unwrap()).unwrap();
        let (x, still) = (var(2.0), var(7.0));
        let mut adam = Adam::new([&x, &still], 0.5, 1.0, 100.0).unwrap();
        // The gradient -1 and the decay 2 give g = 1, so the first step is minus the rate. Decoupled decay would give a different step.
        let loss = (x.as_tensor() * -1.0).unwrap().sum_all().unwrap();
        step(&mut adam, &[&x, &still], &loss);
        assert!((x.to_vec1::<f32>().unwrap()[0] - 1.5).abs() < 1e-6);
        assert_eq!(still.to_vec1::<f32>().unwrap(), [7.0]);
    }

    /// The gradient (3, 4) has norm 5: clipped at 2.5 it is (1.5, 2), and at 10 it stays the same. The first moment is a tenth of it.
    #[test]
    fn clipping_scales_the_joint_norm_and_leaves_small_gradients_unchanged() {
        for (clip_norm, expected) in [(2.5, [0.15, 0.2]), (10.0, [0.3, 0.4])] {
            let var = || Var::from_tensor(&Tensor::new(&[0.0f32], &Device::Cpu).unwrap()).unwrap();
            let (x, y) = (var(), var());
            let mut adam = Adam::new([&x, &y], 0.1, 0.0, clip_norm).unwrap();
            let loss = ((x.as_tensor() * 3.0).unwrap() + (y.as_tensor() * 4.0).unwrap()).unwrap().sum_all().unwrap();
            let norm = step(&mut adam, &[&x, &y], &loss).norm;
            assert!((norm - 5.0).abs() < 1e-6);
            for (moment, expected) in adam.state().unwrap().first.iter().zip(expected) {
                assert!((moment[0] - expected).abs() < 1e-6, "clip {clip_norm}: {moment:?}");
            }
        }
    }

    #[test]
    fn a_step_that_is_not_finite_changes_nothing() {
        let x = Var::from_tensor(&Tensor::new(&[2.0f32], &Device::Cpu).unwrap()).unwrap();
        let mut adam = Adam::new([&x], 0.5, 1.0, 100.0).unwrap();
        let before = adam.state().unwrap();
        let infinite = (x.as_tensor() * f64::INFINITY).unwrap().sum_all().unwrap();
        let loss_alone = (x.as_tensor().sum_all().unwrap() + f64::NAN).unwrap();
        for loss in [infinite, loss_alone] {
            assert!(!step(&mut adam, &[&x], &loss).is_finite());
            assert_eq!((x.to_vec1::<f32>().unwrap(), adam.state().unwrap()), (vec![2.0], before.clone()));
        }
    }
}
