use candle_core::backprop::GradStore;
use candle_core::{Result, Tensor, Var};

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

    /// One step; gives the joint norm before clipping. `parameters` in the order given to [`Adam::new`].
    pub fn step<'a>(&mut self, parameters: impl IntoIterator<Item = &'a Var>, gradients: &GradStore) -> Result<f64> {
        let parameters: Vec<&Var> = parameters.into_iter().collect();
        let mut found = Vec::with_capacity(parameters.len());
        let mut square = 0.0;
        for parameter in &parameters {
            let gradient = match gradients.get(parameter.as_tensor()) {
                Some(gradient) => gradient.flatten_all()?.to_vec1::<f32>()?,
                None => Vec::new(),
            };
            square += gradient.iter().map(|&g| f64::from(g) * f64::from(g)).sum::<f64>();
            found.push(gradient);
        }
        let norm = square.sqrt();
        let factor = (self.clip_norm / (norm + 1e-6)).min(1.0) as f32;
        for (at, (parameter, gradient)) in parameters.iter().zip(&found).enumerate() {
            if !gradient.is_empty() {
                self.update(at, parameter, gradient, factor)?;
            }
        }
        Ok(norm)
    }

    fn update(&mut self, at: usize, parameter: &Var, gradient: &[f32], factor: f32) -> Result<()> {
        let state = &mut self.state;
        state.steps[at] += 1;
        let step = state.steps[at] as i32;
        let step_size = (self.learning_rate / (1.0 - BETA_1.powi(step))) as f32;
        let second_root = (1.0 - BETA_2.powi(step)).sqrt() as f32;
        let (beta_1, beta_2, decay) = (BETA_1 as f32, BETA_2 as f32, self.weight_decay as f32);
        // Subtracted in double precision: 1 - 0.999 in single is off by 5e-5 of itself.
        let (fresh_1, fresh_2) = ((1.0 - BETA_1) as f32, (1.0 - BETA_2) as f32);
        let mut values = parameter.as_tensor().flatten_all()?.to_vec1::<f32>()?;
        let moments = state.first[at].iter_mut().zip(state.second[at].iter_mut());
        for ((value, &gradient), (first, second)) in values.iter_mut().zip(gradient).zip(moments) {
            let g = gradient * factor + decay * *value;
            *first = beta_1 * *first + fresh_1 * g;
            *second = beta_2 * *second + fresh_2 * g * g;
            *value -= step_size * *first / (second.sqrt() / second_root + EPS as f32);
        }
        parameter.set(&Tensor::from_vec(values, parameter.shape(), parameter.device())?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

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
