"""The parts that federated methods are made of, apart from the engines, which are those of central distillation.

distil: a client makes a set · local: a client trains on its records · tables: class means through the gate ·
union: the server trains on sets · averaging: the server averages weights · steps: it counts steps (FedNova, SCAFFOLD) ·
contrast: local training with a contrastive term (MOON) · ensemble: a student of the clients' networks (DENSE) ·
answers: clients answer the questions of the server's engine (CollabDM) · personal: models that clients keep ·
replay: training that is sent instead of its result (FedSynth)
"""
