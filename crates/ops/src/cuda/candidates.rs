//! The item matrix of the logits: F + E of every modality, side by side, each of length one if logits are cosines.

use candle_core::{Result, Tensor, bail};

use super::gpu::{DevicePointer, Floats, Gpu, LaunchGrid, arguments};
use super::{OnGpu, View, apply1, apply2};

pub(crate) fn candidates(
    z: &Tensor,
    starts: &[usize],
    items: usize,
    ids: Option<&Tensor>,
    cosine: bool,
) -> Result<Tensor> {
    let joined = Joined { starts: starts.iter().map(|&start| start as u32).collect(), items, cosine };
    match ids {
        Some(ids) => apply2(joined, z, ids),
        None => apply1(joined, z),
    }
}

struct Joined {
    /// The row of z of each modality's first item.
    starts: Vec<u32>,
    items: usize,
    cosine: bool,
}

impl Joined {
    fn forward(&self, gpu: &Gpu, z: View<'_>, ids: Option<View<'_>>) -> Result<(Floats, Vec<usize>)> {
        let &[rows, d] = z.dims else { bail!("candidates: expected [n, d], found {:?}", z.dims) };
        let fits = self.starts.iter().all(|&start| start as usize + self.items <= rows);
        if !fits || d == 0 || ids.is_some_and(|ids| ids.dims != [self.items + 1, d]) {
            bail!("candidates: {} items from {:?} do not fit {:?}", self.items, self.starts, z.dims);
        }
        let (items, modalities) = (self.items, self.starts.len());
        let (y, starts) = (gpu.allocate::<f32>(items * modalities * d)?, gpu.upload(&self.starts)?);
        let ids = ids.map_or(DevicePointer::NONE, |ids| ids.at);
        let arguments = arguments![&y, z.at, &starts, ids, items, modalities, d, self.cosine];
        gpu.launch("candidates", LaunchGrid::warps(items * modalities), arguments)?;
        Ok((y, vec![items, modalities * d]))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        z: View<'_>,
        ids: Option<View<'_>>,
        dy: View<'_>,
    ) -> Result<(Floats, Option<Floats>)> {
        let (items, modalities, d) = (self.items, self.starts.len(), z.dims[1]);
        let (dz, starts) = (gpu.zeros::<f32>(z.dims[0] * d)?, gpu.upload(&self.starts)?);
        let d_ids = ids.map(|_| gpu.allocate::<f32>((items + 1) * d)).transpose()?;
        let to = d_ids.as_ref().map_or(DevicePointer::NONE, super::device_pointer);
        let ids = ids.map_or(DevicePointer::NONE, |ids| ids.at);
        let arguments = arguments![&dz, to, dy.at, z.at, &starts, ids, items, modalities, d, self.cosine];
        gpu.launch("candidates_backward", LaunchGrid::warps(items), arguments)?;
        Ok((dz, d_ids))
    }
}

impl OnGpu<1> for Joined {
    const NAME: &'static str = "candidates";

    fn forward(&self, gpu: &Gpu, [z]: [View<'_>; 1]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, z, None)
    }

    fn backward(&self, gpu: &Gpu, [z]: [View<'_>; 1], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 1]> {
        Ok([Some(self.backward(gpu, z, None, dy)?.0)])
    }
}

impl OnGpu<2> for Joined {
    const NAME: &'static str = "candidates";

    fn forward(&self, gpu: &Gpu, [z, ids]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, z, Some(ids))
    }

    fn backward(&self, gpu: &Gpu, [z, ids]: [View<'_>; 2], _: View<'_>, dy: View<'_>) -> Result<[Option<Floats>; 2]> {
        let (dz, d_ids) = self.backward(gpu, z, Some(ids), dy)?;
        Ok([Some(dz), d_ids])
    }
}
