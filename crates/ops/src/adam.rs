use std::sync::{Mutex, PoisonError};

use candle_core::backprop::GradStore;
use candle_core::{CpuStorage, InplaceOp1, Layout, Result, Var};
use rayon::prelude::*;

use crate::fused::with_slices;

/// Adam with coupled L2 weight decay and clipping of the joint gradient norm (Kingma and Ba 2015; specification, section 7).
///
/// A parameter without a gradient is not changed, not even by decay.
#[derive(Clone, Debug)]
pub struct Adam {
    /// The learning rate.
    pub learning_rate: f64,
    /// Added to the gradient, times the parameter.
    pub weight_decay: f64,
    /// The joint norm of all gradients is clipped at this.
    pub clip_norm: f64,
    state: AdamState,
}

/// What Adam remembers between steps, in the order of the parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AdamState {
    /// Steps taken by each parameter.
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
    /// Fresh moments for `parameters`.
    pub fn new<'a>(
        parameters: impl IntoIterator<Item = &'a Var>,
        learning_rate: f64,
        weight_decay: f64,
        clip_norm: f64,
    ) -> Self {
        let mut state = AdamState::default();
        for parameter in parameters {
            let zeros = vec![0.0; parameter.as_tensor().elem_count()];
            state.steps.push(0);
            state.first.push(zeros.clone());
            state.second.push(zeros);
        }
        Self { learning_rate, weight_decay, clip_norm, state }
    }

    /// Moments and step counts, to be stored.
    pub fn state(&self) -> &AdamState {
        &self.state
    }

    /// Continues from stored moments.
    pub fn restore(&mut self, state: AdamState) -> Result<()> {
        let shape = |s: &AdamState| -> Vec<(usize, usize)> {
            s.first.iter().zip(&s.second).map(|(a, b)| (a.len(), b.len())).collect()
        };
        if shape(&state) != shape(&self.state) || state.steps.len() != self.state.steps.len() {
            candle_core::bail!("the optimiser's state does not fit the parameters");
        }
        self.state = state;
        Ok(())
    }

    /// One step; gives the joint norm before clipping. `parameters` in the order given to [`Adam::new`]. A norm that is not
    /// finite changes nothing.
    pub fn step<'a>(&mut self, parameters: impl IntoIterator<Item = &'a Var>, gradients: &GradStore) -> Result<f64> {
        let mut found = Vec::new();
        let mut square = 0.0;
        for (at, parameter) in parameters.into_iter().enumerate() {
            if let Some(gradient) = gradients.get(parameter.as_tensor()) {
                let gradient = gradient.contiguous()?;
                square += with_slices([&gradient], |[gradient]| Ok(sum_of_squares(gradient)))?;
                found.push((at, parameter, gradient));
            }
        }
        let norm = square.sqrt();
        if !norm.is_finite() {
            return Ok(norm);
        }
        let clip = (self.clip_norm / (norm + 1e-6)).min(1.0) as f32;
        for (at, parameter, gradient) in found {
            self.state.steps[at] += 1;
            let step = self.state.steps[at] as i32;
            let update = Update {
                step_size: (self.learning_rate / (1.0 - BETA_1.powi(step))) as f32,
                second_root: (1.0 - BETA_2.powi(step)).sqrt() as f32,
                decay: self.weight_decay as f32,
                clip,
            };
            let moments = (&mut self.state.first[at][..], &mut self.state.second[at][..]);
            with_slices([&gradient], |[gradient]| {
                let in_place = InPlace { update, gradient, moments: Mutex::new(moments) };
                parameter.as_tensor().inplace_op1(&in_place)
            })?;
        }
        Ok(norm)
    }
}

/// Values of a parallel piece.
const PIECE: usize = 1 << 14;

/// In double precision, the pieces' sums in order.
fn sum_of_squares(values: &[f32]) -> f64 {
    let piece = |values: &[f32]| values.iter().map(|&v| f64::from(v) * f64::from(v)).sum::<f64>();
    let pieces: Vec<f64> = values.par_chunks(PIECE).map(piece).collect();
    pieces.iter().sum()
}

#[derive(Clone, Copy)]
struct Update {
    step_size: f32,
    second_root: f32,
    decay: f32,
    clip: f32,
}

impl Update {
    fn apply(self, values: &mut [f32], gradient: &[f32], first: &mut [f32], second: &mut [f32]) {
        let (beta_1, beta_2) = (BETA_1 as f32, BETA_2 as f32);
        // Subtracted in double precision: 1 - 0.999 in single is off by 5e-5 of itself.
        let (fresh_1, fresh_2) = ((1.0 - BETA_1) as f32, (1.0 - BETA_2) as f32);
        let moments = first.iter_mut().zip(second);
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = gradient * self.clip + self.decay * *value;
            *first = beta_1 * *first + fresh_1 * g;
            *second = beta_2 * *second + fresh_2 * g * g;
            *value -= self.step_size * *first / (second.sqrt() / self.second_root + EPS as f32);
        }
    }
}

/// The update of one parameter where it lies.
struct InPlace<'a> {
    update: Update,
    gradient: &'a [f32],
    /// First and second; behind a lock, because candle lends its operators immutably.
    moments: Mutex<(&'a mut [f32], &'a mut [f32])>,
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
            .for_each(|((values, gradient), (first, second))| self.update.apply(values, gradient, first, second));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::{Device, Tensor};

    /// Two steps by hand on loss = 3 x at x = 1, rate 0.1: both bias-corrected ratios are g / (|g| + eps) = 1.
    #[test]
    fn two_steps_worked_by_hand() {
        let x = Var::from_tensor(&Tensor::new(&[1.0f32], &Device::Cpu).unwrap()).unwrap();
        let mut adam = Adam::new([&x], 0.1, 0.0, 1.0);
        for expected in [0.9, 0.8] {
            let loss = (x.as_tensor() * 3.0).unwrap().sum_all().unwrap();
            let norm = adam.step([&x], &loss.backward().unwrap()).unwrap();
            assert!((norm - 3.0).abs() < 1e-9);
            let value = x.to_vec1::<f32>().unwrap()[0];
            assert!((value - expected).abs() < 1e-6, "{value}");
        }
    }

    #[test]
    fn decay_joins_the_gradient_and_a_parameter_without_gradient_stays() {
        let var = |v: f32| Var::from_tensor(&Tensor::new(&[v], &Device::Cpu).unwrap()).unwrap();
        let (x, still) = (var(2.0), var(7.0));
        let mut adam = Adam::new([&x, &still], 0.5, 1.0, 100.0);
        // Gradient -1 and decay 2 give g = 1, so the first step is minus the rate; decoupled decay would give another.
        let loss = (x.as_tensor() * -1.0).unwrap().sum_all().unwrap();
        adam.step([&x, &still], &loss.backward().unwrap()).unwrap();
        assert!((x.to_vec1::<f32>().unwrap()[0] - 1.5).abs() < 1e-6);
        assert_eq!(still.to_vec1::<f32>().unwrap(), [7.0]);
    }

    /// The gradient (3, 4) has norm 5: clipped at 2.5 it is (1.5, 2), at 10 it stays. A tenth of it is the first moment.
    #[test]
    fn clipping_scales_the_joint_norm_and_leaves_small_gradients() {
        for (clip_norm, expected) in [(2.5, [0.15, 0.2]), (10.0, [0.3, 0.4])] {
            let var = || Var::from_tensor(&Tensor::new(&[0.0f32], &Device::Cpu).unwrap()).unwrap();
            let (x, y) = (var(), var());
            let mut adam = Adam::new([&x, &y], 0.1, 0.0, clip_norm);
            let loss = ((x.as_tensor() * 3.0).unwrap() + (y.as_tensor() * 4.0).unwrap()).unwrap().sum_all().unwrap();
            let norm = adam.step([&x, &y], &loss.backward().unwrap()).unwrap();
            assert!((norm - 5.0).abs() < 1e-6);
            for (moment, expected) in adam.state().first.iter().zip(expected) {
                assert!((moment[0] - expected).abs() < 1e-6, "clip {clip_norm}: {moment:?}");
            }
        }
    }
}
