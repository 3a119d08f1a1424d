/** Takes the whole corpus through the gate. */

import { proveAll } from './prove-all.ts'

await proveAll({ quick: false })
