/** Reads a stream of bytes forward, so much at a time as a parser asks for. */

export type ByteCursor = {
  /** Bytes that were taken or skipped. */
  readonly at: number
  /** Whether nothing is left. */
  ended(): Promise<boolean>
  /**
   * The next bytes; they are the cursor's and only good until the next call.
   *
   * @throws What `short` makes when fewer are left.
   */
  take(bytes: number): Promise<Buffer>
  /** As `take`, and they come next again. */
  peek(bytes: number): Promise<Buffer>
  /** Whatever comes next, at least one byte. */
  takeSome(): Promise<Buffer>
  skip(bytes: number): Promise<void>
}

/**
 * @param short Makes the error for a stream that ends too early.
 */
export function byteCursor(pieces: AsyncIterable<Buffer>, short: () => Error): ByteCursor {
  const source = pieces[Symbol.asyncIterator]()
  let piece: Buffer = Buffer.alloc(0)
  let at = 0
  const next = async () => {
    const result = await source.next()
    if (result.done === true) return false
    piece = piece.length === 0 ? result.value : Buffer.concat([piece, result.value])
    return true
  }
  return {
    get at() {
      return at
    },
    async ended() {
      while (piece.length === 0) if (!(await next())) return true
      return false
    },
    async take(bytes) {
      while (piece.length < bytes) if (!(await next())) throw short()
      const taken = piece.subarray(0, bytes)
      piece = piece.subarray(bytes)
      at += bytes
      return taken
    },
    async peek(bytes) {
      while (piece.length < bytes) if (!(await next())) throw short()
      return piece.subarray(0, bytes)
    },
    async takeSome() {
      while (piece.length === 0) if (!(await next())) throw short()
      const taken = piece
      piece = Buffer.alloc(0)
      at += taken.length
      return taken
    },
    async skip(bytes) {
      let left = bytes
      while (left > piece.length) {
        left -= piece.length
        piece = Buffer.alloc(0)
        if (!(await next())) throw short()
      }
      piece = piece.subarray(left)
      at += bytes
    },
  }
}
