//! Where the boxes of a graph stand: in layers by the longest path from a box that needs nothing, in
//! an order with few crossings (Sugiyama, Tagawa and Toda 1981: barycentres), near what they are joined
//! to, without overlaps.
//!
//! An edge that skips layers passes through a bend in each of them; the edges of one box share their
//! bends, so that they leave it as one line.

/// The size of a box.
#[derive(Clone, Copy)]
pub(super) struct Box {
    pub(super) width: f64,
    pub(super) height: f64,
}

/// Its middle and its size.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    pub(super) x: f64,
    pub(super) y: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A whole graph.
pub(super) struct Layout {
    /// Of the boxes as given, then of bends.
    pub(super) places: Vec<Place>,
    /// Pairs of places, from a layer to the next.
    pub(super) edges: Vec<(usize, usize)>,
    pub(super) width: f64,
    pub(super) height: f64,
    boxes: usize,
}

const MARGIN: f64 = 4.0;
/// Between boxes of a layer.
const GAP: f64 = 18.0;
/// Between layers.
const STEP: f64 = 36.0;
const BEND_WIDTH: f64 = 8.0;
/// Passes down and up; graphs of this size have settled long before.
const SWEEPS: usize = 12;

impl Layout {
    /// Of boxes, each with those that it needs, all of them before it.
    pub(super) fn new(needs: &[Vec<usize>], boxes: &[Box]) -> Self {
        let mut graph = Graph::new(needs);
        graph.sort();
        let width = |node: usize| boxes.get(node).map_or(BEND_WIDTH, |it| it.width);
        let x = graph.settle(&width);
        let left = |node: usize| x[node] - width(node) / 2.0;
        let least = (0..x.len()).map(left).fold(f64::INFINITY, f64::min);
        let most = (0..x.len()).map(|node| left(node) + width(node)).fold(0.0, f64::max);
        let mut places = vec![Place { x: 0.0, y: 0.0, width: 0.0, height: 0.0 }; x.len()];
        let mut top = MARGIN;
        for row in &graph.rows {
            let height = |&node: &usize| boxes.get(node).map(|it| it.height);
            let tallest = row.iter().filter_map(height).fold(0.0, f64::max);
            for node in row {
                let (x, y) = (x[*node] - least + MARGIN, top + tallest / 2.0);
                let height = height(node).unwrap_or(tallest);
                places[*node] = Place { x, y, width: width(*node), height };
            }
            top += tallest + STEP;
        }
        let width = most - least + 2.0 * MARGIN;
        let height = top - STEP + MARGIN;
        Self { places, edges: graph.edges, width, height, boxes: boxes.len() }
    }

    /// Whether a place is none of the boxes.
    pub(super) fn is_bend(&self, place: usize) -> bool {
        place >= self.boxes
    }
}

/// How many boxes are on the longest path to each.
fn depths(needs: &[Vec<usize>]) -> Vec<usize> {
    let mut depths: Vec<usize> = Vec::new();
    for needed in needs {
        depths.push(needed.iter().map(|&at| depths[at] + 1).max().unwrap_or(0));
    }
    depths
}

struct Graph {
    /// Nodes of each layer, from left to right.
    rows: Vec<Vec<usize>>,
    /// Between neighbouring layers.
    edges: Vec<(usize, usize)>,
    above: Vec<Vec<usize>>,
    below: Vec<Vec<usize>>,
}

impl Graph {
    fn new(needs: &[Vec<usize>]) -> Self {
        let depths = depths(needs);
        let mut rows = vec![Vec::new(); depths.iter().max().map_or(0, |most| most + 1)];
        depths.iter().enumerate().for_each(|(node, &depth)| rows[depth].push(node));
        let (mut edges, mut nodes) = (Vec::new(), needs.len());
        for (from, &depth) in depths.iter().enumerate() {
            // The line down from this box: itself, then its bends.
            let mut line = vec![from];
            for (to, _) in needs.iter().enumerate().filter(|(_, needed)| needed.contains(&from)) {
                while depth + line.len() < depths[to] {
                    rows[depth + line.len()].push(nodes);
                    edges.push((line[line.len() - 1], nodes));
                    line.push(nodes);
                    nodes += 1;
                }
                edges.push((line[depths[to] - depth - 1], to));
            }
        }
        let (mut above, mut below) = (vec![Vec::new(); nodes], vec![Vec::new(); nodes]);
        for &(from, to) in &edges {
            above[to].push(from);
            below[from].push(to);
        }
        Self { rows, edges, above, below }
    }

    /// Layers to visit, with whether they look up: down the graph, then up.
    fn sweep(&self) -> impl Iterator<Item = (usize, bool)> + use<> {
        let rows = self.rows.len();
        (0..rows).map(|row| (row, true)).chain((0..rows).rev().map(|row| (row, false)))
    }

    fn neighbours(&self, node: usize, up: bool) -> &[usize] {
        if up { &self.above[node] } else { &self.below[node] }
    }

    /// Orders every layer by the mean place of its nodes' neighbours.
    fn sort(&mut self) {
        let mut place = vec![0.0; self.above.len()];
        let number = |row: &[usize], place: &mut [f64]| {
            row.iter().enumerate().for_each(|(at, &node)| place[node] = at as f64);
        };
        self.rows.iter().for_each(|row| number(row, &mut place));
        for _ in 0..SWEEPS {
            for (at, up) in self.sweep() {
                let mut row = std::mem::take(&mut self.rows[at]);
                let key = |&node: &usize| mean(self.neighbours(node, up), &place, place[node]);
                row.sort_by(|a, b| key(a).total_cmp(&key(b)));
                number(&row, &mut place);
                self.rows[at] = row;
            }
        }
    }

    /// The middles of all nodes.
    fn settle(&self, width: &dyn Fn(usize) -> f64) -> Vec<f64> {
        let mut x = vec![0.0; self.above.len()];
        for _ in 0..SWEEPS {
            for (at, up) in self.sweep() {
                let row = &self.rows[at];
                let wish = |&node: &usize| mean(self.neighbours(node, up), &x, x[node]);
                let wishes: Vec<f64> = row.iter().map(wish).collect();
                let widths: Vec<f64> = row.iter().map(|&node| width(node)).collect();
                for (node, place) in row.iter().zip(apart(&wishes, &widths)) {
                    x[*node] = place;
                }
            }
        }
        x
    }
}

fn mean(nodes: &[usize], of: &[f64], otherwise: f64) -> f64 {
    if nodes.is_empty() {
        return otherwise;
    }
    nodes.iter().map(|&node| of[node]).sum::<f64>() / nodes.len() as f64
}

/// Middles nearest to the wishes (least squares) that keep order and gaps: isotonic regression by
/// pooling neighbours that are too near.
fn apart(wishes: &[f64], widths: &[f64]) -> Vec<f64> {
    let (mut shifts, mut shift) = (Vec::new(), 0.0);
    for at in 0..widths.len() {
        if at > 0 {
            shift += f64::midpoint(widths[at - 1], widths[at]) + GAP;
        }
        shifts.push(shift);
    }
    // Sums and counts of pools; means grow from pool to pool.
    let mut pools: Vec<(f64, usize)> = Vec::new();
    for (wish, shift) in wishes.iter().zip(&shifts) {
        let mut pool = (wish - shift, 1);
        while let Some(&(sum, count)) = pools.last() {
            if sum / count as f64 <= pool.0 / pool.1 as f64 {
                break;
            }
            pool = (pool.0 + sum, pool.1 + count);
            pools.pop();
        }
        pools.push(pool);
    }
    let means = pools.iter().flat_map(|&(sum, count)| vec![sum / count as f64; count]);
    means.zip(shifts).map(|(mean, shift)| mean + shift).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(needs: &[Vec<usize>]) -> Layout {
        Layout::new(needs, &vec![Box { width: 100.0, height: 40.0 }; needs.len()])
    }

    #[test]
    fn depth_is_the_longest_path() {
        let chain = [vec![], vec![0], vec![1]];
        assert_eq!(depths(&chain), [0, 1, 2]);
        let diamond = [vec![], vec![0], vec![0], vec![1, 2]];
        assert_eq!(depths(&diamond), [0, 1, 1, 2]);
        // A short way beside a long one does not lift a box.
        assert_eq!(depths(&[vec![], vec![0], vec![1], vec![0, 2]]), [0, 1, 2, 3]);
    }

    #[test]
    fn a_chain_is_straight_and_a_diamond_even() {
        let chain = layout(&[vec![], vec![0], vec![1]]);
        assert!(chain.places.iter().all(|place| place.x == chain.width / 2.0));
        assert_eq!(chain.width, 100.0 + 2.0 * MARGIN);
        let diamond = layout(&[vec![], vec![0], vec![0], vec![1, 2]]);
        let x: Vec<f64> = diamond.places.iter().map(|place| place.x).collect();
        assert!(x[1] + 100.0 + GAP <= x[2] + 1e-9, "{x:?}");
        assert!((x[0] - f64::midpoint(x[1], x[2])).abs() < 1e-6 && x[0] == x[3], "{x:?}");
    }

    #[test]
    fn an_edge_that_skips_layers_bends_around_their_boxes() {
        let skip = layout(&[vec![], vec![0], vec![1], vec![0, 2], vec![0]]);
        // 0 → 3 passes the layers of 1 and 2; 0 → 4 leaves straight.
        assert_eq!(skip.places.len(), 7);
        assert!(skip.is_bend(5) && !skip.is_bend(4));
        for edge in [(0, 5), (5, 6), (6, 3), (0, 1), (1, 2), (2, 3), (0, 4)] {
            assert!(skip.edges.contains(&edge), "{edge:?}: {:?}", skip.edges);
        }
        let (bend, beside) = (skip.places[6], skip.places[2]);
        assert_eq!(bend.y, beside.y);
        assert!((bend.x - beside.x).abs() >= 50.0 + GAP, "{bend:?} {beside:?}");
    }

    #[test]
    fn places_keep_their_gaps() {
        let found = apart(&[0.0, 0.0, 500.0], &[100.0; 3]);
        assert_eq!(found, [-59.0, 59.0, 500.0]);
    }
}
