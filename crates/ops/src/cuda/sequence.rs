//! The input of the transformer: Dropout(LayerNorm(z + id + position)), gathered token by token.

use std::sync::OnceLock;

use candle_core::{Result, Tensor, bail};

use super::gpu::{BLOCKS, DevicePointer, Floats, Gpu, LaunchGrid, arguments, device_pointer};
use super::rows::UploadedGatherIndex;
use super::{OnGpu, View, WIDEST, apply2, apply3, lanes};
use crate::{Dropout, Rows, plain};

pub(crate) fn sequence_input(
    z: Rows<'_>,
    ids: Option<Rows<'_>>,
    positions: Rows<'_>,
    dropout: Dropout,
) -> Result<Tensor> {
    if z.table.dim(1)? > WIDEST {
        return plain::sequence_input(z, ids, positions, dropout);
    }
    let rows = |rows: Rows<'_>| rows.rows.to_vec();
    let input =
        Input { z: rows(z), ids: ids.map(rows), positions: rows(positions), dropout, uploaded: OnceLock::new() };
    match ids {
        Some(ids) => apply3(input, z.table, positions.table, ids.table),
        None => apply2(input, z.table, positions.table),
    }
}

struct Input {
    /// The row of z for each token.
    z: Vec<u32>,
    ids: Option<Vec<u32>>,
    positions: Vec<u32>,
    dropout: Dropout,
    uploaded: OnceLock<Uploaded>,
}

struct Uploaded {
    z: UploadedGatherIndex,
    ids: Option<UploadedGatherIndex>,
    positions: UploadedGatherIndex,
}

/// Pointers to the tables: z, the positions, their LayerNorm, and the ids, if any.
#[derive(Clone, Copy)]
struct Tables {
    z: DevicePointer,
    positions: DevicePointer,
    norm: DevicePointer,
    ids: DevicePointer,
}

impl Input {
    fn tables(z: View<'_>, packed: View<'_>, ids: Option<View<'_>>) -> Tables {
        let (rows, d) = (packed.dims[0] - 2, packed.dims[1]);
        let ids = ids.map_or(DevicePointer::NONE, |ids| ids.at);
        Tables { z: z.at, positions: packed.at, norm: packed.at.plus(rows * d), ids }
    }

    fn forward(&self, gpu: &Gpu, z: View<'_>, packed: View<'_>, ids: Option<View<'_>>) -> Result<(Floats, Vec<usize>)> {
        const NAME: &str = "sequence_input";
        let (&[n, d], &[rows, d2]) = (z.dims, packed.dims) else {
            bail!("sequence_input: expected two matrices, found {:?} and {:?}", z.dims, packed.dims)
        };
        let tokens = self.z.len();
        let one_width = d == d2 && ids.is_none_or(|ids| ids.dims.get(1) == Some(&d));
        let one_count = self.positions.len() == tokens && self.ids.as_ref().is_none_or(|ids| ids.len() == tokens);
        if !one_width || rows < 3 || !one_count {
            bail!("sequence_input: {:?} and {:?} do not fit each other", z.dims, packed.dims);
        }
        let id_index = match (&self.ids, ids) {
            (Some(index), Some(table)) => Some(UploadedGatherIndex::new(gpu, index, table.dims[0], NAME)?),
            _ => None,
        };
        let uploaded = Uploaded {
            z: UploadedGatherIndex::new(gpu, &self.z, n, NAME)?,
            ids: id_index,
            positions: UploadedGatherIndex::new(gpu, &self.positions, rows - 2, NAME)?,
        };
        let (tables, y) = (Self::tables(z, packed, ids), gpu.allocate::<f32>(tokens * d)?);
        let id_rows = uploaded.ids.as_ref().map_or(DevicePointer::NONE, UploadedGatherIndex::rows);
        gpu.launch(
            &format!("input_{}", lanes(d)),
            LaunchGrid::warps(tokens),
            arguments![
                &y,
                tables.z,
                uploaded.z.rows(),
                tables.ids,
                id_rows,
                tables.positions,
                uploaded.positions.rows(),
                tables.norm,
                tokens,
                d,
                self.dropout,
            ],
        )?;
        let _ = self.uploaded.set(uploaded);
        Ok((y, vec![tokens, d]))
    }

    /// The gradients of z, of the packed positions, and of the ids.
    fn backward(
        &self,
        gpu: &Gpu,
        z: View<'_>,
        packed: View<'_>,
        ids: Option<View<'_>>,
        dy: View<'_>,
    ) -> Result<(Floats, Floats, Option<Floats>)> {
        let Some(uploaded) = self.uploaded.get() else { bail!("sequence_input: backward before forward") };
        let (tokens, d, rows) = (self.z.len(), z.dims[1], packed.dims[0] - 2);
        let tables = Self::tables(z, packed, ids);
        let blocks = BLOCKS.min(tokens.max(1));
        let (dv, partial) = (gpu.allocate::<f32>(tokens * d)?, gpu.allocate::<f32>(blocks * 2 * d)?);
        let id_rows = uploaded.ids.as_ref().map_or(DevicePointer::NONE, UploadedGatherIndex::rows);
        gpu.launch(
            &format!("input_backward_{}", lanes(d)),
            LaunchGrid::blocks(blocks, 1),
            arguments![
                &dv,
                &partial,
                dy.at,
                tables.z,
                uploaded.z.rows(),
                tables.ids,
                id_rows,
                tables.positions,
                uploaded.positions.rows(),
                tables.norm,
                tokens,
                d,
                self.dropout,
            ],
        )?;
        let d_packed = gpu.allocate::<f32>((rows + 2) * d)?;
        uploaded.positions.scatter_into(gpu, device_pointer(&d_packed), device_pointer(&dv), d)?;
        gpu.sum_rows(device_pointer(&d_packed).plus(rows * d), device_pointer(&partial), blocks, 2 * d)?;
        let dz = uploaded.z.scatter(gpu, device_pointer(&dv), d)?;
        let d_ids = uploaded.ids.as_ref().map(|ids| ids.scatter(gpu, device_pointer(&dv), d)).transpose()?;
        Ok((dz, d_packed, d_ids))
    }
}

impl OnGpu<2> for Input {
    const NAME: &'static str = "sequence_input";

    fn forward(&self, gpu: &Gpu, [z, packed]: [View<'_>; 2]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, z, packed, None)
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [z, packed]: [View<'_>; 2],
        _: View<'_>,
        dy: View<'_>,
    ) -> Result<[Option<Floats>; 2]> {
        let (dz, d_packed, _) = self.backward(gpu, z, packed, None, dy)?;
        Ok([Some(dz), Some(d_packed)])
    }
}

impl OnGpu<3> for Input {
    const NAME: &'static str = "sequence_input";

    fn forward(&self, gpu: &Gpu, [z, packed, ids]: [View<'_>; 3]) -> Result<(Floats, Vec<usize>)> {
        self.forward(gpu, z, packed, Some(ids))
    }

    fn backward(
        &self,
        gpu: &Gpu,
        [z, packed, ids]: [View<'_>; 3],
        _: View<'_>,
        dy: View<'_>,
    ) -> Result<[Option<Floats>; 3]> {
        let (dz, d_packed, d_ids) = self.backward(gpu, z, packed, Some(ids), dy)?;
        Ok([Some(dz), Some(d_packed), d_ids])
    }
}
