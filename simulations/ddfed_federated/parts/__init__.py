"""The parts that federated methods are made of, apart from the engines, which are those of central distillation.

distil: a client makes a set · local: a client trains on its records · tables: class means through the gate ·
union: the server trains on sets · averaging: the server averages weights · answers: clients answer the questions of the
server's engine
"""
