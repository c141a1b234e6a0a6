//! Uploads that nobody waits for bring what was there when they were asked for. The emulated device
//! copies as late as CUDA may.

mod emulated;

use hybra_cuda::Staging;

#[test]
fn what_is_staged_later_does_not_reach_copies_under_way() {
    let Some(gpu) = emulated::gpu() else { return };
    let mut staging = Staging::new(gpu);
    // At first the buffers of the host grow while copies from them are under way.
    let lens = [5, 5, 700, 3, 4000, 4000, 1, 9000, 9001, 6, 6, 6, 6, 6];
    let mut shared = gpu.alloc::<u32>(9001).unwrap();
    let mut copies: Vec<_> = lens.iter().map(|len| gpu.alloc::<u32>(*len).unwrap()).collect();
    let values = |i: usize| -> Vec<u32> { (0..lens[i]).map(|j| (i * 10_000 + j) as u32).collect() };
    for (i, copy) in copies.iter_mut().enumerate() {
        let mut staged = values(i);
        staging.upload(shared.slice_mut(..lens[i]), &staged).unwrap();
        staged.fill(0);
        gpu.copy(copy.slice_mut(..), shared.slice(..lens[i])).unwrap();
    }
    // A staging that goes leaves its copies whole, too.
    let mut last = gpu.alloc::<u32>(lens[0]).unwrap();
    {
        let mut going = staging;
        going.upload(last.slice_mut(..), &values(0)).unwrap();
    }
    for (i, copy) in copies.iter().enumerate() {
        assert!(gpu.to_vec(copy.slice(..)).unwrap() == values(i), "upload {i}");
    }
    assert_eq!(gpu.to_vec(last.slice(..)).unwrap(), values(0));
}
