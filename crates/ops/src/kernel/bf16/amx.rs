//! The products by AMX tiles: a tile has 16 rows of 64 bytes, and one instruction multiplies a tile of 16 x 32 values of a with one of
//! 32 x 16 of b. The instructions are written as assembly, because their intrinsics are not stable.

use std::arch::asm;
use std::sync::LazyLock;

use super::super::Mat;
use super::pack::{COLUMNS, LANES, Panels, pack_b, pack_tiles};

/// The rows of the result that a kernel computes at once, for [`COLUMNS`] columns: two tiles each way.
const ROWS: usize = 2 * LANES;
/// The values of k in a tile.
const DEPTH: usize = 2 * LANES;
/// A block of b is K x N and one of a is M x K: packed, they take at most 1,536 KiB and 192 KiB of bf16, in a second-level cache of 2 MiB.
/// The sums are loaded and stored once per K.
const K: usize = 24 * DEPTH;
const N: usize = 1024;
const M: usize = 4 * ROWS;

/// Whether the processor has tiles and the operating system lets this process use them. Packing needs AVX-512-BF16, too.
pub(super) fn has_tiles() -> bool {
    static AVAILABLE: LazyLock<bool> = LazyLock::new(|| has_instructions() && request_tiles());
    *AVAILABLE
}

fn has_instructions() -> bool {
    const AMX_BF16: u32 = 1 << 22;
    const AMX_TILE: u32 = 1 << 24;
    let leaf = std::arch::x86_64::__cpuid_count(7, 0).edx;
    leaf & AMX_BF16 != 0 && leaf & AMX_TILE != 0
}

/// Asks the operating system for the registers of tiles, which a process may use only on request.
#[cfg(target_os = "linux")]
fn request_tiles() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XTILE_DATA: libc::c_long = 18;
    // SAFETY: the call reads no memory.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XTILE_DATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn request_tiles() -> bool {
    false
}

/// The operand of `ldtilecfg`: all eight tiles have 16 rows of 64 bytes.
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

static SHAPES: Shapes = {
    let mut shapes = Shapes { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row: [0; 16], rows: [0; 16] };
    let mut tile = 0;
    while tile < 8 {
        shapes.bytes_per_row[tile] = 64;
        shapes.rows[tile] = 16;
        tile += 1;
    }
    shapes
};

/// Keeps this thread's tiles configured until it is dropped.
struct Tiles;

impl Tiles {
    fn configure() -> Self {
        // SAFETY: `matmul` requires the instructions; the operand has the 64 bytes that they read.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const SHAPES, options(nostack, preserves_flags, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: the instruction exists, because the tiles are configured. Tiles that are not in use need not be saved by the operating
        // system.
        unsafe { asm!("tilerelease", options(nostack, preserves_flags, nomem)) };
    }
}

/// Memory for a block of the result that is not whole, because tiles always cover `ROWS` x `COLUMNS`.
#[repr(C, align(64))]
struct Block([f32; ROWS * COLUMNS]);

/// The product, which has at least one element. The caller has checked the shapes and that the instructions exist.
#[target_feature(enable = "avx512f,avx512bw,avx512bf16")]
pub(super) unsafe fn matmul(out: &mut [f32], a: Mat<'_>, b: Mat<'_>, add: bool) {
    let (m, n, k) = (a.rows, b.columns, a.columns);
    let pairs_most = k.min(K).next_multiple_of(DEPTH) / 2;
    let block_columns = n.div_ceil(n.div_ceil(N)).next_multiple_of(COLUMNS);
    let mut packed_b = Panels::of(block_columns * pairs_most);
    let mut packed_a = Panels::of(m.min(M).next_multiple_of(ROWS) * pairs_most);
    let (packed_a, packed_b) = (packed_a.start(), packed_b.start());
    let _tiles = Tiles::configure();
    for first_n in (0..n).step_by(block_columns) {
        let columns = block_columns.min(n - first_n);
        for first_k in (0..k).step_by(K) {
            let depth = K.min(k - first_k);
            let pairs = depth.next_multiple_of(DEPTH) / 2;
            let added = add || first_k > 0;
            // SAFETY: the buffers have room for all panels, because `pairs` is at most `pairs_most`.
            unsafe {
                pack_b(packed_b, pairs, b, [first_k, depth], [first_n, columns]);
                for first_m in (0..m).step_by(M) {
                    let rows = M.min(m - first_m);
                    pack_tiles(packed_a, pairs, a, [first_m, rows], [first_k, depth]);
                    for column in (0..columns).step_by(COLUMNS) {
                        let panel: *const u32 = packed_b.add(column * pairs);
                        let wide = COLUMNS.min(columns - column);
                        for row in (0..rows).step_by(ROWS) {
                            let own: *const u32 = packed_a.add(row * pairs);
                            let target = out.as_mut_ptr().add((first_m + row) * n + first_n + column);
                            block([own, panel], pairs, target, n, [ROWS.min(rows - row), wide], added);
                        }
                    }
                }
            }
        }
    }
}

/// Computes a block of the result, of which `rows` rows and `columns` columns exist. The sums start from what is there if `add`.
#[target_feature(enable = "avx512f")]
unsafe fn block(
    panels: [*const u32; 2],
    pairs: usize,
    out: *mut f32,
    stride: usize,
    [rows, columns]: [usize; 2],
    add: bool,
) {
    // SAFETY: the caller's `out` has the rows and columns, and a whole block is as large as what the tiles cover.
    unsafe {
        if [rows, columns] == [ROWS, COLUMNS] {
            return whole_block(panels, pairs, out, stride, add);
        }
        let mut copy = Block([0.0; ROWS * COLUMNS]);
        let at = copy.0.as_mut_ptr();
        if add {
            for row in 0..rows {
                at.add(row * COLUMNS).copy_from_nonoverlapping(out.add(row * stride), columns);
            }
        }
        whole_block(panels, pairs, at, COLUMNS, add);
        for row in 0..rows {
            out.add(row * stride).copy_from_nonoverlapping(at.add(row * COLUMNS), columns);
        }
    }
}

/// The kernel. Tiles 0 to 3 hold the sums, 4 and 5 rows of a, and 6 and 7 columns of b.
#[inline]
unsafe fn whole_block([a, b]: [*const u32; 2], pairs: usize, out: *mut f32, stride: usize, add: bool) {
    // SAFETY: the block has `ROWS` rows that are `stride` apart, a panel has `pairs` pairs in tiles of `LANES`, and the tiles have their
    // shapes.
    unsafe {
        asm!(
            "test {add:e}, {add:e}",
            "jz 2f",
            "tileloadd tmm0, [{out} + {stride}*1]",
            "tileloadd tmm1, [{out} + {stride}*1 + 64]",
            "tileloadd tmm2, [{lower} + {stride}*1]",
            "tileloadd tmm3, [{lower} + {stride}*1 + 64]",
            "jmp 3f",
            "2:",
            "tilezero tmm0",
            "tilezero tmm1",
            "tilezero tmm2",
            "tilezero tmm3",
            "3:",
            "tileloadd tmm4, [{a} + {row_of_a}*1]",
            "tileloadd tmm6, [{b} + {row_of_b}*1]",
            "tileloadd tmm7, [{b} + {row_of_b}*1 + 64]",
            "tileloadd tmm5, [{second_a} + {row_of_a}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 1024",
            "add {second_a}, 1024",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 3b",
            "tilestored [{out} + {stride}*1], tmm0",
            "tilestored [{out} + {stride}*1 + 64], tmm1",
            "tilestored [{lower} + {stride}*1], tmm2",
            "tilestored [{lower} + {stride}*1 + 64], tmm3",
            add = in(reg) u32::from(add),
            out = in(reg) out,
            lower = in(reg) out.wrapping_add(LANES * stride),
            stride = in(reg) stride * size_of::<f32>(),
            a = inout(reg) a => _,
            second_a = inout(reg) a.wrapping_add(LANES * pairs) => _,
            row_of_a = in(reg) LANES * size_of::<u32>(),
            b = inout(reg) b => _,
            row_of_b = in(reg) COLUMNS * size_of::<u32>(),
            steps = inout(reg) pairs / LANES => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
            options(nostack),
        );
    }
}
