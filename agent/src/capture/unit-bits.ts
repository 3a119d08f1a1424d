/** Reads a coded unit bit by bit, as H.264 and HEVC write their heads. */

/** Runs out with a RangeError. */
export class UnitBits {
  #at = 0
  readonly #bytes: Buffer

  /** @param unit Without its head; bytes that only keep start codes apart may be in it. */
  constructor(unit: Buffer) {
    this.#bytes = withoutEscapes(unit)
  }

  flag(): boolean {
    return this.#bit() === 1
  }

  number(bits: number): number {
    let value = 0
    for (let i = 0; i < bits; i++) value = value * 2 + this.#bit()
    return value
  }

  skip(bits: number): void {
    this.#at += bits
    if (this.#at > this.#bytes.length * 8) throw new RangeError('a unit ends too early')
  }

  /** An Exp-Golomb code. */
  unsigned(): number {
    let zeros = 0
    while (this.#bit() === 0) if (++zeros > 32) throw new RangeError('a number too long')
    return 2 ** zeros - 1 + this.number(zeros)
  }

  signed(): number {
    const value = this.unsigned()
    return value % 2 === 1 ? (value + 1) / 2 : -value / 2
  }

  /** Whether only the bit is left that ends every unit, and zeros up to the next byte. */
  isEnd(): boolean {
    const last = this.#bytes.length - 1
    const byte = this.#bytes[last] ?? 0
    if (byte === 0) return false
    const stop = last * 8 + 7 - (31 - Math.clz32(byte & -byte))
    return this.#at === stop
  }

  #bit(): number {
    const byte = this.#bytes[this.#at >> 3]
    if (byte === undefined) throw new RangeError('a unit ends too early')
    return (byte >> (7 - (this.#at++ & 7))) & 1
  }
}

/** @see ITU-T H.264, 7.4.1: a 3 behind two zeros is none of the content. */
function withoutEscapes(unit: Buffer): Buffer {
  const plain = Buffer.alloc(unit.length)
  let [to, zeros] = [0, 0]
  for (const byte of unit) {
    if (zeros >= 2 && byte === 3) {
      zeros = 0
      continue
    }
    plain[to++] = byte
    zeros = byte === 0 ? zeros + 1 : 0
  }
  return plain.subarray(0, to)
}
